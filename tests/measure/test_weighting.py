"""The weighted mean over tasks: its point, its interval, and how the verdict uses it."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.errors import MeasureError
from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.weighting import weighted_mean_change
from optbench.record.record import Record
from optbench.record.verdict import Outcome, judge
from optbench.report.accuracy import accuracy_table
from tests.conftest import accuracy_of


def pair(
    task: str, loss: float, spread: float, *, seed: int, count: int = 300, weight: float = 1.0, prefix: str = ""
) -> tuple[AccuracyResult, AccuracyResult]:
    """A base and a candidate that loses `loss` of the mean exactly, with noise per query."""
    generator = np.random.default_rng(seed)
    before = generator.uniform(0.4, 1.0, count)
    noise = spread * generator.standard_normal(count)
    after = before * (1 - loss) + noise - noise.mean()

    def named(values: NDArray[np.float64]) -> dict[str, float]:
        return {f"{prefix}q{index}": float(value) for index, value in enumerate(values)}

    return accuracy_of(task, named(before), weight), accuracy_of(task, named(after), weight)


def test_one_task_keeps_its_own_interval() -> None:
    one = pair("a", 0.02, 0.1, seed=1)
    mean, alone = weighted_mean_change([one]), accuracy_change(*one)
    assert (mean.point, mean.low, mean.high, mean.n) == pytest.approx((alone.point, alone.low, alone.high, alone.n), abs=1e-9)


def test_weights_shift_the_mean() -> None:
    pairs = [pair("a", 0.04, 0.05, seed=1, weight=3.0), pair("b", 0.0, 0.05, seed=2, prefix="b")]
    assert weighted_mean_change(pairs).point == pytest.approx(-0.03, abs=1e-9)


def test_weights_shift_the_mean_of_tasks_with_the_same_queries() -> None:
    pairs = [pair("a", 0.04, 0.05, seed=1, weight=3.0), pair("b", 0.0, 0.05, seed=2)]
    assert weighted_mean_change(pairs).point == pytest.approx(-0.03, abs=1e-9)


def test_independent_tasks_add_up_by_squares() -> None:
    pairs = [pair("a", 0.01, 0.1, seed=1), pair("b", 0.03, 0.1, seed=2, prefix="b")]
    mean, changes = weighted_mean_change(pairs), [accuracy_change(*each) for each in pairs]
    assert mean.point == pytest.approx(-0.02, abs=1e-9)
    assert mean.point - mean.low == pytest.approx(sum((0.5 * (change.point - change.low)) ** 2 for change in changes) ** 0.5)
    assert mean.n == 600


def test_languages_of_a_parallel_corpus_are_not_taken_for_independent_evidence() -> None:
    english = pair("en", 0.02, 0.1, seed=1)
    # German loses on the very same queries, so it says nothing new: the interval must not shrink.
    german = tuple(each.model_copy(update={"task": "de"}) for each in english)
    both, alone = weighted_mean_change([english, (german[0], german[1])]), accuracy_change(*english)
    assert (both.point, both.half_width, both.n) == pytest.approx((alone.point, alone.half_width, 300), abs=1e-9)
    # As separate tasks they would have claimed 1.4 times the precision.
    other = tuple(accuracy_of("de", {f"x{query}": value for query, value in each.metrics["nDCG@10"].items()}) for each in english)
    assert weighted_mean_change([english, (other[0], other[1])]).half_width == pytest.approx(alone.half_width / 2**0.5, rel=0.02)


@pytest.mark.parametrize("together", [True, False])
def test_interval_holds_the_true_mean_as_often_as_it_says(together: bool) -> None:
    """40 queries a task, two tasks, true loss known; 95 % of 100 runs, give or take 3 standard errors (6.5 points)."""
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        shared = generator.normal(0, 0.05, 40)
        pairs = []
        for task, loss in (("a", 0.0), ("b", 0.02)):
            before = generator.uniform(0.4, 1.0, 40)
            noise = shared + generator.normal(0, 0.05, 40) if together else generator.normal(0, 0.07, 40)
            prefix = "" if together else task
            values = [{f"{prefix}{i}": float(v) for i, v in enumerate(each)} for each in (before, before * (1 - loss) + noise)]
            pairs.append((accuracy_of(task, values[0]), accuracy_of(task, values[1])))
        change = weighted_mean_change(pairs)
        held += change.low <= -0.01 <= change.high
    assert held >= 89


def test_tasks_that_do_not_belong_together_are_refused() -> None:
    (a, _), (c, d) = pair("a", 0.0, 0.1, seed=1), pair("c", 0.0, 0.1, seed=2)
    with pytest.raises(MeasureError, match="a cannot be compared with c"):
        weighted_mean_change([(a, d)])
    with pytest.raises(MeasureError, match="no task was measured on both"):
        weighted_mean_change([])
    fewer = accuracy_of("a", {"q0": 1.0})
    with pytest.raises(MeasureError, match="a was measured on other queries"):
        weighted_mean_change([(a, fewer)])
    nothing = accuracy_of("c", dict.fromkeys(c.metrics["nDCG@10"], 0.0))
    with pytest.raises(MeasureError, match="mean on c is zero or less"):
        weighted_mean_change([(nothing, d)])


def judged(make_record: Callable[..., Record], *pairs: tuple[AccuracyResult, AccuracyResult]) -> Record:
    record = make_record(candidate_ms=20)
    base = record.points[0].model_copy(update={"accuracy": tuple(before for before, _ in pairs)})
    final = record.final.model_copy(update={"accuracy": tuple(after.model_copy(update={"overlap": {"q": 1.0}}) for _, after in pairs)})
    return record.model_copy(update={"points": (base, final)})


def test_tasks_too_small_alone_pass_by_their_mean(make_record: Callable[..., Record]) -> None:
    # Alone each spans 1 %: its half-interval is about 1.1 %, that of five together 0.5 %.
    pairs = [pair(f"t{seed}", 0.0, 0.07, seed=seed, prefix=str(seed)) for seed in range(5)]
    verdict = judge(judged(make_record, *pairs))
    *alone, mean = (finding for finding in verdict.findings if finding.unit == "relative change")
    assert Outcome.INCONCLUSIVE in {finding.outcome for finding in alone}
    assert not any(finding.decides for finding in alone)
    assert (mean.about, mean.outcome, mean.decides) == ("weighted mean of 5 tasks", Outcome.PASS, True)
    assert verdict.outcome == Outcome.PASS


def test_confirmed_loss_in_one_language_is_not_made_good_by_the_others(make_record: Callable[..., Record]) -> None:
    gains = [pair(f"t{seed}", -0.05, 0.01, seed=seed, prefix=str(seed)) for seed in range(3)]
    verdict = judge(judged(make_record, *gains, pair("de", 0.04, 0.01, seed=9)))
    assert verdict.findings[-1].outcome == Outcome.PASS
    assert verdict.outcome == Outcome.FAIL


def test_report_has_a_row_a_language_and_the_mean(make_record: Callable[..., Record]) -> None:
    pairs = [pair(f"xquadr:{name}", 0.01, 0.01, seed=1, weight=0.25) for name in ("ar", "de", "en", "zh")]
    table = accuracy_table(judged(make_record, *pairs))
    assert table is not None
    tasks = [row[0] for row in table.rows if row[1] != "base"]
    assert tasks == ["xquadr:ar", "xquadr:de", "xquadr:en", "xquadr:zh", "weighted mean"]
    assert {row[4] for row in table.rows if row[1] != "base"} == {"-1.0"}
    assert "xquadr:zh 300 (weight 0.25)" in table.note
