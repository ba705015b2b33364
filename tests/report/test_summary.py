"""What `apply` ends with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.cli.terminal import print_summary
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report.summary import Summary, noise_grouped, summarize
from optbench.report.table import tradeoff_table, verdict_table

FOLDER = Path("exported/gte-large")


def judged(record: Record) -> tuple[Summary, list[str]]:
    summary = summarize(record, judge(record), FOLDER)
    return summary, [f"{label} {text}".strip() for label, text in summary.lines]


def values(shift: float) -> dict[str, float]:
    return {f"q{index}": 0.5 + shift * (index % 3) for index in range(200)}


def test_summary_has_verdict_latency_loss_folder_and_next_command_in_this_order(make_record: Callable[..., Record]) -> None:
    summary, lines = judged(make_record(accuracy=(values(0), values(0.001))))
    assert summary.verdict == "gte-large: pass"
    assert [label for label, _ in summary.lines] == ["latency", "loss", "folder", "next"]
    latency, loss, folder, following = lines
    assert "89.9 -> 36 ms at 16 tokens" in latency
    assert "2.50x as fast as openvino fp32 (2.4" in latency
    assert "target >= 2.25x: met at 5 of 5 lengths" in latency
    assert loss.startswith("loss nDCG@10 on judged: +0.2 % (-0.2..+0.6)")
    assert loss.endswith("at least -1.0 %: pass")
    assert folder.startswith("folder exported/gte-large  (0 MB")
    assert following == "next optbench report exported/gte-large"


def test_length_that_misses_the_target_is_named_with_its_reason(make_record: Callable[..., Record]) -> None:
    summary, lines = judged(make_record(candidate_ms=60.0))
    assert summary.verdict == "gte-large: fail"
    assert "met at 0 of 5 lengths" in lines[0]
    (missed,) = (line for line in lines if line.startswith("over openvino fp32, 16 tokens: 1.50 x"))
    assert missed.endswith("fail: the whole interval misses the target")
    assert "loss not measured" in lines


def test_interval_on_one_side_of_its_limit_says_why_it_settles_nothing(make_record: Callable[..., Record]) -> None:
    record = make_record(rounds=3)
    verdict = judge(record)
    assert all(finding.low > finding.limit for finding in verdict.findings)
    assert verdict.outcome == "inconclusive"
    _, lines = judged(record)
    assert sum("3 rounds are too few for an interval: measure at least 6" in line for line in lines) == 5
    # In the table the reason stands once, with every target that it applies to.
    note = verdict_table(verdict).note
    assert note.count("3 rounds are too few for an interval") == 1
    assert "Inconclusive, over openvino fp32, 8 tokens; over openvino fp32, 16 tokens" in note


def test_random_weights_are_a_verdict_on_latency_only(make_record: Callable[..., Record]) -> None:
    summary, lines = judged(make_record(weights="random"))
    assert summary.verdict == "gte-large: pass (latency only: the weights are random)"
    assert "loss not judged: the weights are random" in lines


def test_noise_is_one_line_and_other_warnings_are_kept(make_record: Callable[..., Record]) -> None:
    from optbench.measure.timing_warnings import timing_warnings

    record = make_record(spread=0.2)
    noisy = timing_warnings(record.timings)
    assert len(noisy) > 1
    record = record.model_copy(update={"warnings": ("the base states no license", *noisy)})
    grouped = noise_grouped(record)
    assert len(grouped) == 2
    assert grouped[0] == "the base states no license"
    assert grouped[1].startswith("noisy timings (")
    assert "the middle half of the rounds spreads over more than" in grouped[1]
    quiet = make_record().model_copy(update={"warnings": ("the base states no license",)})
    assert noise_grouped(quiet) == ["the base states no license"]


def test_untimed_run_names_no_engine_as_the_fastest(make_record: Callable[..., Record]) -> None:
    record = make_record()
    points = tuple(point.model_copy(update={"timing": None}) for point in record.points)
    record = record.model_copy(update={"points": points, "baselines": (), "timings": ()})
    assert "None" not in tradeoff_table(record).note
    assert judged(record)[1][0] == "latency not measured"


def test_worst_cosine_names_its_number_of_texts(make_record: Callable[..., Record]) -> None:
    from optbench.measure.fidelity import Fidelity

    record = make_record()
    final = record.final.model_copy(update={"fidelity_to_base": Fidelity(mean=0.99, p01=0.98, minimum=0.97, worst=3, n_texts=128)})
    table = tradeoff_table(record.model_copy(update={"points": (record.points[0], final)}))
    assert table.columns[-1] == "worst of 128"


def test_summary_in_a_pipe_has_one_line_an_entry(make_record: Callable[..., Record], capsys: pytest.CaptureFixture[str]) -> None:
    summary, _ = judged(make_record(rounds=3))
    print_summary(summary)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(summary.lines)
    assert lines[0] == "gte-large: inconclusive"
