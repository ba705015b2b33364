"""Records side by side: what is refused, and what a ratio of two runs says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optbench.errors import RecordError
from optbench.machine.floor import Peaks, floor_ms
from optbench.measure.latency import Timing
from optbench.measure.statistics import process_rounds
from optbench.record.compare import RunPair, compare
from optbench.record.record import Record
from optbench.report.compare import comparison_tables
from optbench.report.table import to_markdown

MakeRecord = Callable[..., Record]
BASELINES = ("torch fp32", "openvino fp32")


def rerun(
    record: Record,
    seed: int = 0,
    *,
    day: float = 1.0,
    slower: float = 0.0,
    spread: float = 0.01,
    between: float = 0.0,
    luck: float = 0.0,
) -> Record:
    """The same models in another run: noise of each round's own, a pace of the day, an artifact that takes `slower` more time.

    Args:
        record: for the medians.
        seed: of the noise.
        day: what every latency is multiplied by.
        slower: relative.
        spread: of the rounds.
        between: standard deviation by which each model differs from run to run.
        luck: standard deviation by which each model's processes differ.
    """
    generator = np.random.default_rng(seed)

    def timing(old: Timing) -> Timing:
        pace = day * (1.0 if old.label in record.baselines else 1 + slower) * np.exp(between * generator.standard_normal())
        shares = [len(each) for each in process_rounds(len(next(iter(old.samples_ns.values()))), old.processes)]
        lucks = np.repeat(np.exp(luck * generator.standard_normal(old.processes)), shares)
        medians = {length: old.median_ms(length) for length in old.samples_ns}
        samples = {
            length: tuple((round(1e6 * median * pace * own * np.exp(spread * generator.standard_normal())),) for own in lucks)
            for length, median in medians.items()
        }
        return old.model_copy(update={"samples_ns": samples})

    final = record.final.model_copy(update={"artifact_sha256": f"{seed:064}"})
    timings = tuple(timing(old) for old in record.timings)
    return record.model_copy(update={"timings": timings, "points": (*record.points[:-1], final), "created": f"run {seed}"})


def per_query(loss: float, count: int = 100) -> tuple[dict[str, float], dict[str, float]]:
    before = np.random.default_rng(1).uniform(0.4, 1.0, count)
    return {str(i): float(v) for i, v in enumerate(before)}, {str(i): float(v * (1 - loss)) for i, v in enumerate(before)}


def peaks(read: float = 50.0, threads: int = 2) -> Peaks:
    return Peaks(threads=threads, read_gb_per_s=read, gemm_tops={"fp32": 0.4, "int8": 1.6})


def elsewhere(record: Record, **changes: Any) -> Record:
    return record.model_copy(update={"machine": record.machine.model_copy(update={"cpu": "another"}), **changes})


def test_faster_artifact_is_as_many_times_as_fast_with_the_truth_in_its_interval(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    found = compare([rerun(record, 1), rerun(record, 2, slower=-0.2)])
    first, second = found.entries
    assert first.relative == {}
    assert second.relative.keys() == set(record.recipe.workload.lengths)
    for interval in second.relative.values():
        assert interval.low <= 1.25 <= interval.high
        assert interval.half_width < 0.02


def test_slower_day_is_not_a_slower_artifact_and_is_spoken_of(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    found = compare([rerun(record, 1), rerun(record, 2, day=1.3)])
    for length, interval in found.entries[1].relative.items():
        assert interval.low < 1 < interval.high
        assert found.entries[1].ms[length].point > 1.25 * found.entries[0].ms[length].point
    assert "itself was 30 % slower" in " ".join(found.notes)


def test_interval_widens_by_what_unchanged_baselines_moved_from_run_to_run(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    quiet = compare([rerun(record, 1), rerun(record, 2)]).entries[1].relative[16]
    found = compare([rerun(record, 1), rerun(record, 2, between=0.05)])
    assert found.entries[1].relative[16].half_width > 3 * quiet.half_width
    assert "the ratios of unchanged models moved by" in found.notes[0]


def test_one_shared_baseline_has_no_control_and_says_so(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    record = record.model_copy(update={"baselines": ("openvino fp32",), "timings": record.timings[1:]})
    assert "share only one unchanged model" in compare([record, rerun(record)]).notes[0]


def test_step_that_nobody_changed_is_a_control_and_a_changed_one_is_not(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    step = record.timings[1].model_copy(update={"label": "2 convert_openvino"})
    old, new = (rerun(record.model_copy(update={"timings": (*record.timings, step)}), seed) for seed in (1, 2))
    assert RunPair(old, new).controls == [*BASELINES, "2 convert_openvino"]
    changed = new.timings[-1].model_copy(update={"sha256": "another"})
    assert RunPair(old, new.model_copy(update={"timings": (*new.timings[:-1], changed)})).controls == list(BASELINES)


def test_other_libraries_are_spoken_of(make_record: MakeRecord) -> None:
    record = make_record()
    found = compare([record, record.model_copy(update={"libraries": {"onnxruntime": "1.33.0"}})])
    assert "onnxruntime 1.32.0 and 1.33.0" in found.notes[-1]


def test_more_than_two_records_are_each_set_against_the_first(make_record: MakeRecord) -> None:
    record = make_record(spread=0)
    found = compare([rerun(record, 1), rerun(record, 2, slower=-0.5), rerun(record, 3, slower=1.0)])
    assert [round(entry.relative[16].point, 1) for entry in found.entries[1:]] == [2.0, 0.5]


def test_accuracy_is_paired_against_the_first_record(make_record: MakeRecord) -> None:
    found = compare([make_record(accuracy=per_query(0.0)), make_record(accuracy=per_query(0.02))])
    change = found.entries[1].change["judged"]
    assert change.point == pytest.approx(-0.02)
    assert -0.03 < change.low < -0.02 < change.high < -0.01
    assert found.entries[1].accuracy["judged"] == pytest.approx(0.98 * found.entries[0].accuracy["judged"])


def test_accuracy_on_other_queries_is_shown_and_not_compared(make_record: MakeRecord) -> None:
    found = compare([make_record(accuracy=per_query(0.0)), make_record(accuracy=per_query(0.0, count=50))])
    assert found.entries[1].accuracy.keys() == {"judged"}
    assert found.entries[1].change == {}


def test_random_weights_have_no_accuracy(make_record: MakeRecord) -> None:
    found = compare([make_record(weights="random", accuracy=per_query(0.0))] * 2)
    assert all(entry.accuracy == {} and entry.change == {} for entry in found.entries)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 4}, "threads: 2 and 4"),
        ({"isa": "avx2"}, "instruction set: all and avx2"),
        ({"weights": "random"}, "weights: real and random"),
        ({"baselines": ()}, "share no fp32 baseline"),
    ],
)
def test_unlike_records_are_refused_with_the_reason(make_record: MakeRecord, change: dict[str, Any], said: str) -> None:
    record = make_record()
    with pytest.raises(RecordError, match=said):
        compare([record, record.model_copy(update=change)])


def test_other_machine_is_refused(make_record: MakeRecord) -> None:
    record = make_record()
    with pytest.raises(RecordError, match=r"machine: .* and another"):
        compare([record, elsewhere(record)])


def test_other_lengths_are_refused(make_record: MakeRecord) -> None:
    record = make_record()
    workload = record.recipe.workload.model_copy(update={"lengths": (8, 16), "judged_lengths": (8,)})
    with pytest.raises(RecordError, match="lengths: "):
        compare([record, record.model_copy(update={"recipe": record.recipe.model_copy(update={"workload": workload})})])


def test_other_body_is_refused_but_for_its_floor(make_record: MakeRecord) -> None:
    record = make_record()
    recipe = record.recipe
    small = recipe.model_copy(update={"base": recipe.base.model_copy(update={"body": recipe.base.body.model_copy(update={"layers": 6})})})
    other = record.model_copy(update={"recipe": small})
    with pytest.raises(RecordError, match=r"has 24 layers of 1024.*has 6 layers of 1024.*multiples of the floor"):
        compare([record, other])
    found = compare([record, other], "floor", peaks={record.machine.fingerprint: peaks()})
    assert found.entries[1].relative[16].point == pytest.approx(4 * found.entries[0].relative[16].point, rel=0.01)


@pytest.mark.parametrize("count", [0, 1])
def test_one_record_alone_is_refused(make_record: MakeRecord, count: int) -> None:
    with pytest.raises(RecordError, match="name two or more"):
        compare([make_record()] * count)


def test_untimed_artifact_is_refused(make_record: MakeRecord) -> None:
    record = make_record()
    untimed = record.model_copy(update={"points": (record.points[0], record.final.model_copy(update={"timing": None}))})
    with pytest.raises(RecordError, match="was not timed"):
        compare([record, untimed])


def test_floor_compares_machines_by_multiples_of_their_own(make_record: MakeRecord) -> None:
    record = make_record(candidate_ms=36)
    other = elsewhere(make_record(candidate_ms=72), threads=4)
    known = {record.machine.fingerprint: peaks(50.0), other.machine.fingerprint: peaks(25.0, threads=4)}
    found = compare([record, other], "floor", peaks=known)
    for length in record.recipe.workload.lengths:
        body = record.recipe.base.body
        floor = floor_ms(body.multiply_adds(length), body.weights, "int8", peaks(50.0)).ms
        interval = found.entries[0].relative[length]
        assert interval.low <= 36 / floor <= interval.high
        assert found.entries[0].floor_ms[length] == floor
    # Half the bandwidth and twice the time: where memory is the floor, the two machines are used alike.
    assert found.entries[1].relative[8].point == pytest.approx(found.entries[0].relative[8].point, rel=0.02)


@pytest.mark.parametrize(
    ("own", "change", "said"),
    [
        (None, {}, r"no peaks of its machine, .*; run optbench probe --json > peaks.json there"),
        (peaks(threads=4), {}, r"ran on 2 threads, but the peaks are of 4"),
        (peaks(), {"isa": "avx2"}, r"was limited to avx2"),
    ],
)
def test_floor_that_is_not_known_is_refused_with_the_cure(
    make_record: MakeRecord, own: Peaks | None, change: dict[str, Any], said: str
) -> None:
    record = make_record(**change)
    with pytest.raises(RecordError, match=said):
        compare([record, record], "floor", peaks={} if own is None else {record.machine.fingerprint: own})


def test_tables_show_milliseconds_ratio_and_accuracy(make_record: MakeRecord) -> None:
    old, new = make_record(spread=0, accuracy=per_query(0.0)), make_record(spread=0, accuracy=per_query(0.02), candidate_ms=18)
    shown = "\n".join(to_markdown(table) for table in comparison_tables(compare([old, new])))
    assert "2.00x (2.00..2.00)" in shown
    assert "(-2.0 -2.7..-1.3)" in shown
    assert "36.0 |" in shown


def test_table_of_floors_has_a_row_for_each_record(make_record: MakeRecord) -> None:
    record = make_record()
    tables = comparison_tables(compare([record, record], "floor", peaks={record.machine.fingerprint: peaks()}))
    assert tables[1].title.startswith("Multiples of each machine's floor")
    assert len(tables[1].rows) == 2


def test_records_of_few_rounds_are_marked(make_record: MakeRecord) -> None:
    tables = comparison_tables(compare([make_record(rounds=4)] * 2))
    assert "too few rounds" in tables[1].rows[0][1]
