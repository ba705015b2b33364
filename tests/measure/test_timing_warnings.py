"""Doubts about a run's figures: said once, with every model they are about."""

from collections.abc import Mapping, Sequence

from optbench.measure.footprint import MemorySample
from optbench.measure.latency import Timing
from optbench.measure.timing_warnings import timing_warnings

STEADY = [1000] * 16
DRIFTING = [1000] * 8 + [1080] * 8
DRIFT = "the second half of the rounds is over 5% slower than the first; the clock rate or the load moved"


def timing_of(label: str, rounds: Mapping[int, Sequence[int]], unstable: tuple[int, ...] = ()) -> Timing:
    return Timing(
        label=label,
        sha256=label,
        engine={"engine": "openvino"},
        load_ms=1.0,
        memory=MemorySample(rss_bytes=1, anonymous_bytes=1, file_bytes=0, peak_rss_bytes=1),
        warm_runs={},
        unstable=unstable,
        samples_ns={length: tuple((value,) for value in values) for length, values in rounds.items()},
        processes=1,
    )


def test_steady_models_are_not_named() -> None:
    assert timing_warnings([timing_of("fp32", {8: STEADY, 16: STEADY})]) == []


def test_doubt_names_its_lengths() -> None:
    assert timing_warnings([timing_of("fp32", {8: STEADY, 16: DRIFTING, 32: DRIFTING})]) == [f"fp32 at 16, 32 tokens: {DRIFT}"]


def test_models_with_one_doubt_share_a_line() -> None:
    both, one = {8: DRIFTING, 16: DRIFTING}, {8: DRIFTING, 16: STEADY}
    timings = [timing_of("fp32", both), timing_of("int8", one), timing_of("int4", both), timing_of("whole", {8: STEADY}, unstable=(8,))]
    assert timing_warnings(timings) == [
        f"fp32, int4 at 8, 16 tokens: {DRIFT}",
        f"int8 at 8 tokens: {DRIFT}",
        "whole at 8 tokens: warm-up ended before consecutive runs agreed",
    ]


def test_doubt_about_every_model_counts_them() -> None:
    timings = [timing_of(label, {8: DRIFTING}) for label in ("fp32", "int8", "int4")]
    assert timing_warnings(timings) == [f"all 3 models at 8 tokens: {DRIFT}"]
