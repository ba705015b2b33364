"""Latency: warm-up with a fake clock, and the shape of an interleaved run on tiny models."""

from collections.abc import Callable, Iterator

import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.errors import EngineError
from optbench.measure.latency import WARM_RUNS_MAX, measure_latency, measure_serving, time_candidates, warm_until_stable
from optbench.measure.subject import Subject

MakeArtifact = Callable[..., Artifact]


def taken(*nanoseconds: int) -> Callable[[], int]:
    runs: Iterator[int] = iter(nanoseconds)
    return lambda: next(runs)


def test_warm_up_ends_when_four_runs_agree() -> None:
    runs, stable = warm_until_stable(taken(900, 300, 104, 100, 102, 101, 7), clock=lambda: 0.0)
    assert runs == [900, 300, 104, 100, 102, 101]
    assert stable


def test_the_first_run_never_counts_as_agreeing() -> None:
    assert len(warm_until_stable(taken(100, 100, 100, 100, 100, 7), clock=lambda: 0.0)[0]) == 5


def test_runs_that_never_agree_end_at_the_bound_and_are_unstable() -> None:
    runs, stable = warm_until_stable(taken(*(100 * (1 + index % 2) for index in range(100))), clock=lambda: 0.0)
    assert len(runs) == WARM_RUNS_MAX
    assert not stable


def test_slow_runs_end_by_the_clock() -> None:
    seconds = iter(range(0, 1000, 3))
    runs, stable = warm_until_stable(taken(1, 5, 9, 20, 40, 80), clock=lambda: float(next(seconds)))
    assert len(runs) == 2
    assert not stable


def subject(artifact: Artifact, label: str = "") -> Subject:
    engine = OpenVino(threads=1) if artifact.kind is Kind.OPENVINO else OnnxRuntime(threads=1)
    return Subject(artifact, engine, label=label)


def test_every_subject_has_every_round_whatever_the_number_of_processes(make_artifact: MakeArtifact) -> None:
    subjects = [subject(make_artifact(Kind.ONNX), "a"), subject(make_artifact(Kind.OPENVINO), "b")]
    shares: list[float] = []
    timings = measure_latency(subjects, [16, 8], rounds=5, processes=2, progress=lambda message, share: shares.append(share or 0.0))
    assert [timing.label for timing in timings] == ["a", "b"]
    for timing in timings:
        assert list(timing.samples_ns) == [8, 16]
        assert all(len(blocks) == 5 for blocks in timing.samples_ns.values())
        assert len({len(block) for block in timing.samples_ns[8]}) == 1
        assert min(ns for blocks in timing.samples_ns.values() for block in blocks for ns in block) > 0
        assert timing.memory.peak_rss_bytes > 10e6
        assert timing.load_ms > 0
    assert all(0 <= share <= 1 for share in shares)


def test_candidates_are_timed_at_every_length(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(Kind.ONNX).path
    times = time_candidates(Kind.ONNX, [folder, folder], OnnxRuntime(threads=1), [4, 8], rounds=3)
    assert [sorted(candidate) for candidate in times] == [[4, 8], [4, 8]]
    assert all(ms > 0 for candidate in times for ms in candidate.values())


def test_an_engine_that_cannot_open_is_an_error_with_its_reason(make_artifact: MakeArtifact) -> None:
    broken = Subject(make_artifact(Kind.OPENVINO), OnnxRuntime())
    with pytest.raises(EngineError, match="OnnxRuntime opens onnx"):
        measure_latency([broken], [8], rounds=3)


def test_serving_times_each_text_once(make_artifact: MakeArtifact) -> None:
    times = measure_serving(subject(make_artifact(Kind.OPENVINO)), ["red shoe", "desk"], "query")
    assert times.tokens == (4, 3)
    assert len(times.tokenize_ns) == len(times.embed_ns) == len(times.encode_ns) == 2
    assert min(times.tokenize_ns) > 0
