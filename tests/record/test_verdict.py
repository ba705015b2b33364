"""Verdicts: pass and fail only where the whole interval says so."""

from collections.abc import Callable

import numpy as np
import pytest

from optbench.machine.boxes import load_boxes
from optbench.measure.fidelity import Fidelity
from optbench.measure.stability import Stability, StabilityRow
from optbench.recipe.schema import StabilityTarget
from optbench.record.record import Record
from optbench.record.verdict import Outcome, fastest_baseline, judge

MakeRecord = Callable[..., Record]


def per_query(loss: float, spread: float, count: int = 400) -> tuple[dict[str, float], dict[str, float]]:
    """Values of a base, and of a candidate that loses `loss` of the mean, with noise per query."""
    generator = np.random.default_rng(1)
    before = generator.uniform(0.4, 1.0, count)
    noise = generator.standard_normal(count) * spread
    after = before * (1 - loss) + noise - noise.mean()
    return {str(i): float(v) for i, v in enumerate(before)}, {str(i): float(v) for i, v in enumerate(after)}


def test_twice_the_wanted_speed_up_passes(make_record: MakeRecord) -> None:
    verdict = judge(make_record(baseline_ms=90, candidate_ms=20, accuracy=per_query(0.0, 0.01)))
    assert verdict.outcome == Outcome.PASS
    assert verdict.exit_status == 0
    assert "not box i9" in verdict.judged_by


def test_slower_than_wanted_fails(make_record: MakeRecord) -> None:
    verdict = judge(make_record(baseline_ms=90, candidate_ms=60, accuracy=per_query(0.0, 0.01)))
    assert verdict.outcome == Outcome.FAIL
    assert verdict.exit_status == 1


def test_interval_over_the_target_is_inconclusive(make_record: MakeRecord) -> None:
    verdict = judge(make_record(baseline_ms=90, candidate_ms=40, spread=0.2, accuracy=per_query(0.0, 0.01)))
    assert verdict.outcome == Outcome.INCONCLUSIVE
    assert verdict.exit_status == 3


def test_ratio_is_against_the_fastest_fp32_engine_and_not_torch(make_record: MakeRecord) -> None:
    record = make_record(baseline_ms=90, candidate_ms=60)
    assert fastest_baseline(record, 16) == "openvino fp32"
    # Against torch, at 180 ms, the same model would have passed with 3x.
    assert all(finding.value < 2 for finding in judge(record).findings)


@pytest.mark.parametrize(
    ("loss", "spread", "outcome"), [(0.0, 0.01, Outcome.PASS), (0.05, 0.01, Outcome.FAIL), (0.008, 0.3, Outcome.INCONCLUSIVE)]
)
def test_accuracy_is_judged_by_its_interval(make_record: MakeRecord, loss: float, spread: float, outcome: Outcome) -> None:
    verdict = judge(make_record(candidate_ms=20, accuracy=per_query(loss, spread)))
    assert verdict.findings[-1].unit == "relative change"
    assert verdict.findings[-1].outcome == outcome


def test_random_weights_get_no_accuracy_verdict(make_record: MakeRecord) -> None:
    verdict = judge(make_record(candidate_ms=20, weights="random", accuracy=per_query(0.5, 0.01)))
    assert verdict.outcome == Outcome.PASS
    assert not any(finding.unit == "relative change" for finding in verdict.findings)


@pytest.mark.parametrize(("ms", "outcome"), [(36.0, Outcome.PASS), (44.0, Outcome.FAIL)])
def test_milliseconds_judge_on_the_reference_box(make_record: MakeRecord, ms: float, outcome: Outcome) -> None:
    box = next(box for box in load_boxes() if box.name == "i9")
    record = make_record(baseline_ms=50, candidate_ms=ms)
    i9 = record.machine.model_copy(
        update={"cpu": "13th Gen Intel(R) Core(TM) i9-13900K", "flags": ("avx2", "avx_vnni"), "cores": box.cores}
    )
    verdict = judge(record.model_copy(update={"machine": i9}))
    assert verdict.judged_by == "milliseconds, on box i9"
    assert {finding.unit for finding in verdict.findings} == {"ms"}
    assert verdict.outcome == outcome


def stability_at(cosine: float) -> Stability:
    fidelity = Fidelity(mean=1.0, p01=cosine, minimum=cosine, worst=0, n_texts=20)
    rows = (
        StabilityRow(condition="batch of 32, mixed lengths", changes="batch", fidelity=fidelity, explanation="one scale a tensor"),
        StabilityRow(condition="as avx2", changes="isa", fidelity=fidelity.model_copy(update={"minimum": 0.5})),
    )
    return Stability(sha256="f", engine={}, reference="each text alone", n_texts=20, n_documents=0, rows=rows)


@pytest.mark.parametrize(("cosine", "outcome"), [(0.9995, Outcome.PASS), (0.98, Outcome.FAIL)])
def test_stability_floor_judges_the_changes_that_it_names(make_record: MakeRecord, cosine: float, outcome: Outcome) -> None:
    record = make_record(candidate_ms=20, accuracy=per_query(0.0, 0.01))
    floor = StabilityTarget(cosine_min=0.999, changes=("padding", "batch"))
    recipe = record.recipe.model_copy(update={"stability": floor})
    verdict = judge(record.model_copy(update={"recipe": recipe, "stability": stability_at(cosine)}))
    # Padding was not measured and the instruction set is not named: the batch alone is judged.
    assert [finding.about for finding in verdict.findings if finding.unit == "cosine"] == ["stability: batch of 32, mixed lengths"]
    assert verdict.outcome == outcome
    assert verdict.findings[-1].reason == ("no text is below the limit" if outcome == Outcome.PASS else "one scale a tensor")


def test_nothing_measured_is_inconclusive(make_record: MakeRecord) -> None:
    record = make_record()
    untimed = record.final.model_copy(update={"timing": None})
    assert judge(record.model_copy(update={"points": (record.points[0], untimed)})).outcome == Outcome.INCONCLUSIVE


def test_inconclusive_says_how_much_more_would_settle_it(make_record: MakeRecord) -> None:
    verdict = judge(make_record(candidate_ms=20, accuracy=per_query(0.006, 0.1)))
    assert verdict.findings[-1].outcome == Outcome.INCONCLUSIVE
    assert "more queries would probably settle it" in verdict.findings[-1].reason


def test_too_few_rounds_are_never_a_pass(make_record: MakeRecord) -> None:
    verdict = judge(make_record(candidate_ms=10, rounds=4))
    assert {finding.outcome for finding in verdict.findings} == {Outcome.INCONCLUSIVE}
    assert "measure at least 6" in verdict.findings[0].reason
