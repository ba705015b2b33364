"""Comparison of records.

Two records are two runs, perhaps on different days, so their milliseconds are not compared. Each run times the fp32 baselines in the
same rounds as its artifact: speed-ups over a shared baseline are compared, and a slower day cancels.

The memory layout of processes does not cancel: it differs from run to run, and no number of rounds within a run shows it. Models that
both runs share, the other fp32 baselines and unchanged steps' artifacts, estimate it: every interval is widened by as much as their
ratios moved between the runs beyond their own intervals. That estimate rests on few models, so a process that is slow for its whole
life can still look like a change.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Literal

from pydantic import Field

from optbench.errors import RecordError
from optbench.machine.floor import Peaks, WeightFormat
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.latency import Timing
from optbench.measure.statistics import Change, Interval, ratio_observations, unpaired_ratio_interval
from optbench.record.record import Record, check_comparable

__all__ = [
    "Compared",
    "Comparison",
    "Normalize",
    "RunPair",
    "check_alike",
    "compare",
    "pairing_problem",
]

Normalize = Literal["none", "floor"]

# A larger change of the baseline is noted; the ratios allow for it.
DAY_CHANGE_MAX = 0.10


class Compared(Frozen):
    """One record's final artifact in a comparison.

    Attributes:
        label: the recipe and when it ran.
        point: the step that made it.
        ms: by length, the typical latency of its own run.
        relative: by length, the speed-up over the first record's artifact, or, normalized, multiples of the latency floor.
        floor_ms: by length, if normalized.
        accuracy: by task, the mean of the main metric; empty with random weights.
        change: by task, the paired relative change of the main metric against the first record.
    """

    label: str
    artifact_sha256: str
    point: str
    ms: dict[int, Interval]
    relative: dict[int, Interval]
    floor_ms: dict[int, float] = Field(default_factory=dict)
    accuracy: dict[str, float] = Field(default_factory=dict)
    change: dict[str, Change] = Field(default_factory=dict)


class Comparison(Frozen):
    """Records compared with the first one."""

    normalize: Normalize
    entries: tuple[Compared, ...]
    notes: tuple[str, ...]


class RunPair:
    """Two runs, and how much the models that they share moved between them.

    Attributes:
        baselines: labels of the fp32 baselines of both.
        controls: labels of the unchanged models, without the final artifacts.
        lengths: token lengths, sorted.
        deviation: standard deviation, from run to run, of the logarithm of two unchanged models' ratio.
    """

    def __init__(self, old: Record, new: Record) -> None:
        self.old, self.new = old, new
        self.baselines = [label for label in old.baselines if label in new.baselines]
        if not self.baselines:
            raise RecordError(
                f"records of {old.created} and {new.created} share no fp32 baseline ({', '.join(old.baselines) or 'none'}; "
                f"{', '.join(new.baselines) or 'none'}); measure both with the same engines installed"
            )
        self.lengths = sorted(old.recipe.workload.lengths)
        finals = {old.final.timing, new.final.timing}
        before, after = ({timing.label: (timing.sha256, timing.engine) for timing in record.timings} for record in (old, new))
        self.controls = [
            label for label in before if label not in finals and (label in self.baselines or before[label] == after.get(label))
        ]
        self.deviation = self._deviation_between_runs()

    def baseline(self, length: int) -> str:
        """The shared fp32 baseline that was fastest in the old run."""
        return min(self.baselines, key=lambda label: self.old.timing(label).median_ms(length))

    def speed(self, length: int, *, deviation: float | None = None) -> Interval:
        """The speed-up of the new artifact over the old one."""
        baseline = self.baseline(length)
        new, old = _final_timing(self.new), _final_timing(self.old)
        return self._moved(baseline, new, old, length, self.deviation if deviation is None else deviation)

    def _moved(self, baseline: str, new: Timing, old: Timing, length: int, deviation: float = 0.0) -> Interval:
        """A model's speed-up from the old run to the new, relative to a baseline."""
        # A record with one process per model has only rounds.
        by_processes = min(new.processes, old.processes) > 1
        speedups = [
            ratio_observations(
                record.timing(baseline).samples_ns[length], timing.samples_ns[length], processes=timing.processes if by_processes else 1
            )
            for record, timing in ((self.new, new), (self.old, old))
        ]
        return unpaired_ratio_interval(*speedups, of="processes" if by_processes else "rounds", deviation=deviation)

    def notes(self) -> list[str]:
        """Notes on how to read the ratios."""
        apart = f"{self.old.created} and {self.new.created}"
        notes = []
        if len(self.controls) == 1:
            notes.append(f"{apart} share only one unchanged model, so the intervals do not include the variation from run to run")
        elif self.deviation > 0:
            notes.append(
                f"between {apart} the ratios of unchanged models moved by {100 * self.deviation:.1f} % beyond "
                "their intervals; the intervals here are widened accordingly"
            )
        slower = {
            length: self.new.timing(self.baseline(length)).median_ms(length) / self.old.timing(self.baseline(length)).median_ms(length) - 1
            for length in self.lengths
        }
        worst = max(slower, key=lambda length: abs(slower[length]))
        if abs(slower[worst]) > DAY_CHANGE_MAX:
            pace = "slower" if slower[worst] > 0 else "faster"
            notes.append(
                f"{self.baseline(worst)} itself was {100 * abs(slower[worst]):.0f} % {pace} on {self.new.created} at {worst} tokens; "
                "compare speed-ups over it, not milliseconds"
            )
        moved = [
            f"{name} {version} and {self.new.libraries[name]}"
            for name, version in self.old.libraries.items()
            if self.new.libraries.get(name, version) != version
        ]
        if moved:
            notes.append(f"{apart} used other libraries ({', '.join(moved)}): the fp32 baselines may have changed with them")
        return notes

    def _deviation_between_runs(self) -> float:
        """By the method of moments: the mean squared change of the controls less their squared standard error.

        Source: DerSimonian and Laird 1986, "Meta-analysis in clinical trials", Controlled Clinical Trials 7(3).
        """
        excess = []
        for length in self.lengths:
            reference = self.baseline(length)
            for label in self.controls:
                if label != reference:
                    moved = self._moved(reference, self.new.timing(label), self.old.timing(label), length)
                    error = math.log(moved.high / moved.low) / 2 / NormalDist().inv_cdf((1 + moved.confidence) / 2)
                    excess.append(math.log(moved.point) ** 2 - error**2)
        return math.sqrt(max(0.0, fmean(excess))) if excess else 0.0


def _final_timing(record: Record) -> Timing:
    if record.final.timing is None:
        raise RecordError(f"record of {record.created}: its final artifact was not timed; measure it with optbench apply")
    return record.timing(record.final.timing)


def check_alike(records: Sequence[Record], normalize: Normalize) -> None:
    """Raise RecordError if records are not comparable; multiples of the floor may come from different machines and bodies."""
    if len(records) < 2:
        raise RecordError(f"{len(records)} record to compare; name two or more")
    if normalize == "floor":
        # The floor accounts for the machine and its threads; the workload must still be the same.
        first = records[0]
        check_comparable([record.model_copy(update={"machine": first.machine, "threads": first.threads}) for record in records])
        return
    check_comparable(records)
    shapes: dict[str, Record] = {}
    for record in records:
        shapes.setdefault(_shape(record), record)
    if len(shapes) > 1:
        described = "; ".join(f"{record.recipe.name} has {shape}" for shape, record in shapes.items())
        raise RecordError(f"records of different bodies cannot be compared by speed: {described}; compare multiples of the floor")


def _shape(record: Record) -> str:
    """The sizes that latency depends on; those of the embedding tables do not matter."""
    body = record.recipe.base.body
    heads, feed_forward = body.layer_heads or body.heads, body.layer_feed_forward or body.feed_forward
    return f"{body.layers} layers of {body.hidden}, {heads} heads, feed-forward {feed_forward}"


def compare(
    records: Sequence[Record],
    normalize: Normalize = "none",
    *,
    peaks: Mapping[str, Peaks] | None = None,
    floor_format: WeightFormat = "int8",
) -> Comparison:
    """Compare the final artifacts of records with the first one's.

    Args:
        records: two or more, of one machine and body; with `floor`, of any.
        normalize: `none` gives speed-ups over the first record's artifact; `floor` gives multiples of each machine's latency floor.
        peaks: by machine fingerprint, required for `floor`.
        floor_format: weight format of the floor.

    Raises:
        RecordError: the records are not comparable, or a machine's peaks are missing; says what and what to do.
        MeasureError: a machine does not support `floor_format`.
    """
    check_alike(records, normalize)
    pairs = [RunPair(records[0], record) for record in records[1:]] if normalize == "none" else []
    entries = []
    for index, record in enumerate(records):
        timing, lengths = _final_timing(record), sorted(record.recipe.workload.lengths)
        ms = {length: timing.typical_ms(length) for length in lengths}
        floors = _floors(record, peaks or {}, floor_format) if normalize == "floor" else {}
        if normalize == "floor":
            relative = {length: _scaled(ms[length], 1 / floors[length]) for length in lengths}
        elif index:
            relative = {length: pairs[index - 1].speed(length) for length in lengths}
        else:
            relative = {}
        accuracy = () if record.weights == "random" else record.final.accuracy
        entries.append(
            Compared(
                label=f"{record.recipe.name} {record.created}",
                artifact_sha256=record.final.artifact_sha256,
                point=record.final.label,
                ms=ms,
                relative=relative,
                floor_ms=floors,
                accuracy={result.task: result.mean() for result in accuracy},
                change=_changes(records[0], record) if index and record.weights == "real" else {},
            )
        )
    return Comparison(normalize=normalize, entries=tuple(entries), notes=tuple(note for pair in pairs for note in pair.notes()))


def _scaled(interval: Interval, factor: float) -> Interval:
    ends = {"point": interval.point * factor, "low": interval.low * factor, "high": interval.high * factor}
    return interval.model_copy(update=ends)


def _floors(record: Record, peaks: Mapping[str, Peaks], weights: WeightFormat) -> dict[int, float]:
    """The floor of each length on the record's machine."""
    fingerprint, where = record.machine.fingerprint, f"record of {record.created}"
    if record.isa is not None:
        raise RecordError(
            f"{where}: was limited to {record.isa}, but the floor is of the machine's full instruction set; measure without --isa"
        )
    own = peaks.get(fingerprint)
    if own is None:
        raise RecordError(
            f"{where}: no peaks of its machine, {record.machine.cpu} ({fingerprint}); "
            "run optbench probe --json > peaks.json there, and pass the file with --peaks"
        )
    if own.threads != record.threads:
        raise RecordError(f"{where}: ran on {record.threads} threads, but the peaks are of {own.threads}; probe with {record.threads}")
    return record.recipe.floors_ms(own, weights)


def _changes(first: Record, other: Record) -> dict[str, Change]:
    """The changes by task, if both were measured on the same queries."""
    base = {result.task: result for result in first.final.accuracy}
    found = {}
    for result in other.final.accuracy:
        if result.task in base and pairing_problem(base[result.task], result) is None:
            found[result.task] = accuracy_change(base[result.task], result)
    return found


def pairing_problem(old: AccuracyResult, new: AccuracyResult) -> str | None:
    """Why two results of one task cannot be paired; None if they can."""
    if old.main_metric != new.main_metric:
        return f"judged by {old.main_metric} and by {new.main_metric}"
    if old.n_documents != new.n_documents:
        return f"{old.n_documents} documents and {new.n_documents}: the task itself changed"
    apart = old.metrics[old.main_metric].keys() ^ new.metrics[new.main_metric].keys()
    return f"{len(apart)} queries are in one record only: the task itself changed" if apart else None
