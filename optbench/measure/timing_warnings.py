"""What makes the figures of a run doubtful, in words."""

from collections.abc import Sequence

from optbench.measure.latency import Timing
from optbench.measure.statistics import noise_doubts

__all__ = ["timing_warnings"]


def timing_warnings(timings: Sequence[Timing]) -> list[str]:
    """What makes figures of these timings doubtful: each doubt once for the lengths it holds at, with all the models it is about."""
    models: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for timing in timings:
        doubts: dict[str, list[int]] = {}
        for length, blocks in timing.samples_ns.items():
            for doubt in noise_doubts(blocks, timing.processes):
                doubts.setdefault(doubt, []).append(length)
        for length in timing.unstable:
            doubts.setdefault("warm-up ended without the runs agreeing", []).append(length)
        for doubt, lengths in doubts.items():
            models.setdefault(doubt, {}).setdefault(tuple(lengths), []).append(timing.label)
    return [
        f"{_name(labels, len(timings))} at {', '.join(map(str, lengths))} tokens: {doubt}"
        for doubt, by_lengths in models.items()
        for lengths, labels in by_lengths.items()
    ]


def _name(labels: Sequence[str], models: int) -> str:
    return f"all {models} models" if len(labels) == models > 2 else ", ".join(labels)
