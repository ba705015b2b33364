"""Warnings about noisy timings, for the record."""

from collections.abc import Sequence

from optbench.measure.latency import Timing
from optbench.measure.statistics import noise_warnings

__all__ = ["timing_warnings"]


def timing_warnings(timings: Sequence[Timing]) -> list[str]:
    """One line per warning and set of lengths, with all models that it applies to."""
    models: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for timing in timings:
        found: dict[str, list[int]] = {}
        for length, rounds in timing.samples_ns.items():
            for warning in noise_warnings(rounds, timing.processes):
                found.setdefault(warning, []).append(length)
        for length in timing.unstable:
            found.setdefault("warm-up ended before consecutive runs agreed", []).append(length)
        for warning, lengths in found.items():
            models.setdefault(warning, {}).setdefault(tuple(lengths), []).append(timing.label)
    return [
        f"{_name(labels, len(timings))} at {', '.join(map(str, lengths))} tokens: {warning}"
        for warning, by_lengths in models.items()
        for lengths, labels in by_lengths.items()
    ]


def _name(labels: Sequence[str], models: int) -> str:
    return f"all {models} models" if len(labels) == models > 2 else ", ".join(labels)
