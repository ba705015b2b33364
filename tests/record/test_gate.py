"""The gate: confirmed regressions fail, what cannot be told is inconclusive, and how often either is wrong."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from optbench.errors import RecordError
from optbench.machine.cpu import Isa
from optbench.measure.latency import Timing
from optbench.recipe.schema import Workload
from optbench.record.gate import gate
from optbench.record.record import Record
from optbench.record.verdict import Outcome
from optbench.report.gate import gate_table
from optbench.report.table import to_markdown
from tests.record.test_compare import elsewhere, per_query, rerun

MakeRecord = Callable[..., Record]
RUNS = 25


def noisy_queries(loss: float, noise: float, count: int) -> tuple[dict[str, float], dict[str, float]]:
    generator = np.random.default_rng(3)
    before = generator.uniform(0.4, 1.0, count)
    moved = noise * generator.standard_normal(count)
    after = before * (1 - loss) + moved - moved.mean()
    return {str(i): float(v) for i, v in enumerate(before)}, {str(i): float(v) for i, v in enumerate(after)}


def outcomes(record: Record, slower: float, limit: float, runs: int = RUNS, **noise: float) -> Counter[Outcome]:
    """What the checks of many pairs of runs come to, all lengths together."""
    found: Counter[Outcome] = Counter()
    for seed in range(runs):
        pair = rerun(record, 2 * seed, **noise), rerun(record, 2 * seed + 1, slower=slower, day=1.1, **noise)
        found.update(check.outcome for check in gate(*pair, latency_limit=limit).checks)
    return found


def test_tenth_more_time_is_caught_on_quiet_data(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    result = gate(rerun(record, 1), rerun(record, 2, slower=0.10))
    assert result.outcome == Outcome.FAIL
    assert result.exit_status == 1
    for check in result.checks:
        assert check.change is not None
        assert check.change.low > 0.05
        assert check.change.low <= 0.10 <= check.change.high


def test_same_artifact_passes_though_the_day_was_slower(make_record: MakeRecord) -> None:
    record = make_record(spread=0, accuracy=per_query(0.0))
    result = gate(rerun(record, 1), rerun(record, 2, day=1.4))
    assert result.outcome == Outcome.PASS
    assert result.exit_status == 0
    assert {check.about for check in result.checks} >= {"latency, 16 tokens", "nDCG@10 on judged"}


def test_three_percent_against_a_limit_of_three_is_inconclusive_with_more_rounds_to_do(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    result = gate(rerun(record, 1, spread=0.03), rerun(record, 2, slower=0.03, spread=0.03), latency_limit=0.03)
    assert result.outcome == Outcome.INCONCLUSIVE
    assert result.exit_status == 3
    assert any(check.further and f"{check.further} more rounds" in check.reason for check in result.checks)


def test_three_percent_is_never_called_wrongly_more_often_than_the_interval_allows(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    checks = RUNS * len(record.recipe.workload.lengths)
    allowed = 0.025 + 3 * (0.025 * 0.975 / checks) ** 0.5  # one end of a 95 % interval, and three binomial standard errors
    for spread in (0.01, 0.04):
        assert outcomes(record, 0.03, 0.05, spread=spread)[Outcome.FAIL] / checks <= allowed
        assert outcomes(record, 0.03, 0.01, spread=spread)[Outcome.PASS] / checks <= allowed
        at_the_limit = outcomes(record, 0.03, 0.03, spread=spread)
        assert at_the_limit[Outcome.INCONCLUSIVE] / checks >= 1 - 2 * allowed


def test_tenth_is_caught_nearly_always_on_quiet_data_and_no_change_never(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    checks = RUNS * len(record.recipe.workload.lengths)
    assert outcomes(record, 0.10, 0.05, spread=0.01)[Outcome.FAIL] / checks > 0.95
    assert outcomes(record, 0.0, 0.05, spread=0.01)[Outcome.FAIL] == 0


def test_processes_that_differ_are_no_regression_and_a_tenth_is_still_caught(make_record: MakeRecord) -> None:
    # All lengths share a process's luck, so runs and not checks are independent.
    record = make_record(spread=0, rounds=18, processes=6)
    runs = 10
    allowed = 0.025 + 3 * (0.025 * 0.975 / runs) ** 0.5
    checks = runs * len(record.recipe.workload.lengths)
    assert outcomes(record, 0.05, 0.05, runs, luck=0.03)[Outcome.FAIL] / checks <= allowed
    assert outcomes(record, 0.10, 0.05, runs, luck=0.01)[Outcome.FAIL] / checks > 0.8


def test_noisy_runs_are_inconclusive_and_not_a_lucky_number(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    result = gate(rerun(record, 1, spread=0.3), rerun(record, 2, slower=0.05, spread=0.3))
    assert {check.outcome for check in result.checks} == {Outcome.INCONCLUSIVE}


def test_runs_whose_baselines_disagree_ask_for_a_quieter_machine(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    new = rerun(record, 2)
    # One baseline changed against the other by a tenth, which no change to the artifact can do.
    moved = [rerun(record, 3, day=1.1).timings[0], *new.timings[1:]]
    result = gate(rerun(record, 1), new.model_copy(update={"timings": tuple(moved)}))
    assert result.outcome == Outcome.INCONCLUSIVE
    assert all("time both in one run with --retime" in check.reason for check in result.checks)


def test_same_artifact_in_a_process_that_was_slow_throughout_does_not_fail(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    old, new = rerun(record, 1), rerun(record, 2, slower=0.5)
    result = gate(old, new.model_copy(update={"points": old.points}))
    assert result.outcome == Outcome.INCONCLUSIVE
    assert all("are unchanged" in check.reason for check in result.checks)
    # With another engine's version it may well be a regression.
    upgraded = new.model_copy(update={"points": old.points, "libraries": {"onnxruntime": "1.33.0"}})
    failed = gate(old, upgraded)
    assert failed.outcome == Outcome.FAIL
    assert "once more before acting" in failed.notes[-1]


def test_artifacts_timed_in_one_run_are_judged_by_it_alone_and_on_any_machine(make_record: MakeRecord) -> None:
    record = make_record(spread=0, rounds=18, processes=6)
    # By the records the new one takes half the time, and it was made elsewhere.
    old, new = rerun(record, 1), elsewhere(rerun(record, 2, slower=-0.5))
    asked = []

    def retime(workload: Workload, isa: Isa | None) -> tuple[Timing, Timing]:
        asked.append((workload.lengths, isa))
        return rerun(record, 3, spread=0.005).timings[-1], rerun(record, 4, slower=0.10, spread=0.005).timings[-1]

    result = gate(old, new, retime=retime)
    assert asked == [(record.recipe.workload.lengths, None)]
    assert {check.outcome for check in result.checks} == {Outcome.FAIL}
    assert all(check.change is not None and check.change.low <= 0.11 and check.change.high >= 0.09 for check in result.checks)
    assert "timed again" in result.notes[0]


def test_nothing_is_timed_for_records_of_different_workloads(make_record: MakeRecord) -> None:
    record = make_record()
    workload = record.recipe.workload.model_copy(update={"batch": 4})
    other = record.model_copy(update={"recipe": record.recipe.model_copy(update={"workload": workload})})
    with pytest.raises(RecordError, match="batch: 1 and 4"):
        gate(record, other, retime=lambda workload, isa: pytest.fail("timed all the same"))


def test_too_few_rounds_are_inconclusive(make_record: MakeRecord) -> None:
    record = make_record(spread=0, rounds=5)
    result = gate(rerun(record, 1, spread=0.002), rerun(record, 2, spread=0.002))
    assert {check.outcome for check in result.checks} == {Outcome.INCONCLUSIVE}
    assert {check.reason for check in result.checks} == {
        "5 rounds are too few for an interval; about 5 more rounds of both would probably settle it"
    }


def test_half_more_time_in_too_few_rounds_is_inconclusive(make_record: MakeRecord) -> None:
    record = make_record(spread=0, rounds=5)
    result = gate(rerun(record, 1, spread=0.002), rerun(record, 2, slower=0.5, spread=0.002))
    assert {check.outcome for check in result.checks} == {Outcome.INCONCLUSIVE}


@pytest.mark.parametrize(
    ("loss", "noise", "outcome"), [(0.0, 0.01, Outcome.PASS), (0.03, 0.01, Outcome.FAIL), (0.005, 0.1, Outcome.INCONCLUSIVE)]
)
def test_accuracy_is_gated_by_its_paired_interval(make_record: MakeRecord, loss: float, noise: float, outcome: Outcome) -> None:
    before, after = noisy_queries(loss, noise, 400)
    old, new = make_record(accuracy=(before, before)), make_record(accuracy=(before, after))
    check = gate(old, new).checks[-1]
    assert check.about == "nDCG@10 on judged"
    assert check.outcome == outcome
    assert (check.further is not None) == (outcome == Outcome.INCONCLUSIVE)


def test_loss_against_a_base_that_already_lost_is_not_counted_twice(make_record: MakeRecord) -> None:
    lossy = make_record(accuracy=per_query(0.05))
    assert gate(lossy, lossy).outcome == Outcome.PASS


def test_task_that_changed_or_went_is_inconclusive_with_the_reason(make_record: MakeRecord) -> None:
    old = make_record(accuracy=per_query(0.0))
    other, none = gate(old, make_record(accuracy=per_query(0.0, count=50))), gate(old, make_record())
    assert (other.outcome, none.outcome) == (Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE)
    assert "50 queries are in one record only" in other.checks[-1].reason
    assert "is in the old record only" in none.checks[-1].reason


def test_random_weights_are_gated_by_latency_alone(make_record: MakeRecord) -> None:
    result = gate(make_record(weights="random", accuracy=per_query(0.0)), make_record(weights="random", accuracy=per_query(0.5)))
    assert result.outcome == Outcome.PASS
    assert result.notes[-1] == "accuracy is not judged: the weights are random"


def test_records_without_accuracy_say_so(make_record: MakeRecord) -> None:
    assert gate(make_record(), make_record()).notes[-1] == "accuracy is not judged: the old record has none"


def test_unlike_records_are_refused(make_record: MakeRecord) -> None:
    with pytest.raises(RecordError, match=r"machine: .* and another"):
        gate(make_record(), elsewhere(make_record()))


def test_table_has_a_row_a_check_with_its_reason(make_record: MakeRecord) -> None:
    record = make_record(spread=0, accuracy=per_query(0.0))
    result = gate(record, rerun(record, 2, slower=0.10))
    table = gate_table(result)
    assert table.title == "Gate: fail"
    assert len(table.rows) == len(result.checks)
    assert [row[-1] for row in table.rows] == [str(check.outcome) for check in result.checks]
    assert "+10." in to_markdown(table) or "+9." in to_markdown(table)
