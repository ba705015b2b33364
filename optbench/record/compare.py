"""Records side by side.

Two records are two runs, maybe of two days, so their milliseconds are not set against each other. Each run timed the fp32
baselines round by round beside its artifact: the speed-ups over one and the same baseline are compared, and a slower day cancels.

What does not cancel is how two processes happen to lie in memory, which differs from run to run and which no number of rounds
within a run can see. The models that are the same in both runs measure it, the further fp32 baselines and any step's artifact
that nobody changed: as far as their ratios moved between the two runs beyond their intervals, any artifact may have moved, and
every interval is widened by that much. That is an estimate of few models: now and then a process is slow for its whole life.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Literal

from pydantic import Field

from optbench.errors import RecordError
from optbench.machine.floor import Peaks, WeightFormat, floor_ms
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.latency import Timing
from optbench.measure.statistics import Change, Interval, ratio_observations, unpaired_ratio_interval
from optbench.record.record import Record, check_comparable
from optbench.report.table import Table

__all__ = [
    "Compared",
    "Comparison",
    "Normalize",
    "Pair",
    "check_alike",
    "compare",
    "comparison_tables",
    "percent_cells",
    "unlike_results",
]

Normalize = Literal["none", "floor"]

# A day that changes the baseline by more is worth a word; the ratio allows for it.
DAY_CHANGE_MAX = 0.10


class Compared(Frozen):
    """One record's final artifact among the others.

    Attributes:
        label: the recipe and when it ran.
        artifact_sha256: of the artifact.
        point: the step that made it.
        ms: by length, the median of the round medians with its interval; of its own day.
        relative: by length: how many times as fast as the first record's artifact, or, normalized, multiples of the floor.
        floor_ms: by length, where multiples of it are given.
        accuracy: by task, the mean of the metric that judges; empty with random weights.
        change: by task, the paired relative change of that metric against the first record.
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
    """Records side by side; the first is what the others are set against."""

    normalize: Normalize
    entries: tuple[Compared, ...]
    notes: tuple[str, ...]


class Pair:
    """Two runs, and what the models that they share say about what lies between them.

    Attributes:
        baselines: labels of the fp32 baselines of both.
        controls: labels of the models that nobody changed; the final artifacts are what is asked about, so never among them.
        lengths: token lengths, sorted.
        deviation: standard deviation by which a ratio of two unchanged models differs from run to run, on logarithms.
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
        """How many times as fast the new artifact is."""
        baseline = self.baseline(length)
        new, old = _final_timing(self.new), _final_timing(self.old)
        return self._moved(baseline, new, old, length, self.deviation if deviation is None else deviation)

    def _moved(self, baseline: str, new: Timing, old: Timing, length: int, deviation: float = 0.0) -> Interval:
        """By how many times a model became faster against a baseline from the old run to the new."""
        # A record of one process a model has only rounds to show.
        by_processes = min(new.processes, old.processes) > 1
        speedups = [
            ratio_observations(
                record.timing(baseline).samples_ns[length], timing.samples_ns[length], processes=timing.processes if by_processes else 1
            )
            for record, timing in ((self.new, new), (self.old, old))
        ]
        return unpaired_ratio_interval(*speedups, of="processes" if by_processes else "rounds", deviation=deviation)

    def notes(self) -> list[str]:
        """What a reader should know before believing the ratios."""
        apart = f"{self.old.created} and {self.new.created}"
        notes = []
        if len(self.controls) == 1:
            notes.append(f"{apart} share one unchanged model only, so what differs from run to run is not in the intervals")
        elif self.deviation > 0:
            notes.append(
                f"between {apart} unchanged models moved against each other by {100 * self.deviation:.1f} % beyond "
                "their intervals; the intervals here allow for as much"
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
                "speed-ups over it are compared, not milliseconds"
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
        """By the method of moments: what the controls moved by, squared, less the squared error that they were known with.

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
    """Refuse what cannot be set side by side; multiples of a floor may come from other machines and bodies."""
    if len(records) < 2:
        raise RecordError(f"{len(records)} record to compare; name two or more")
    if normalize == "floor":
        # The floor accounts for the machine and its threads; the workload must be the same still.
        first = records[0]
        check_comparable([record.model_copy(update={"machine": first.machine, "threads": first.threads}) for record in records])
        return
    check_comparable(records)
    shapes: dict[str, Record] = Field(default_factory=dict)
    for record in records:
        shapes.setdefault(_shape(record), record)
    if len(shapes) > 1:
        described = "; ".join(f"{record.recipe.name} has {shape}" for shape, record in shapes.items())
        raise RecordError(f"records of different bodies cannot be compared by their speed: {described}; compare multiples of the floor")


def _shape(record: Record) -> str:
    """What a body's time depends on; an input reads a few rows of the tables, however large they are."""
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
    """Set the final artifacts of records side by side, against the first.

    Args:
        records: two or more, of one machine and body, in the order wanted; with `floor` of any machines and bodies.
        normalize: `none` gives speed against the first record's artifact; `floor` gives multiples of each machine's floor.
        peaks: by machine fingerprint, wanted for `floor`.
        floor_format: of the weights that the floor is computed for, one for all records.

    Raises:
        RecordError: the records are not comparable, or a machine's peaks are missing; says what and what to do.
        MeasureError: a machine has no arithmetic for `floor_format`.
    """
    check_alike(records, normalize)
    pairs = [Pair(records[0], record) for record in records[1:]] if normalize == "none" else []
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
        raise RecordError(f"{where}: was held to {record.isa}, and its machine's floor is that of all it has; measure without --isa")
    own = peaks.get(fingerprint)
    if own is None:
        raise RecordError(
            f"{where}: the peaks of its machine, {record.machine.cpu} ({fingerprint}), are not known; "
            "run optbench probe --json > peaks.json there, and give the file with --peaks"
        )
    if own.threads != record.threads:
        raise RecordError(f"{where}: ran on {record.threads} threads, the peaks given are of {own.threads}; probe with {record.threads}")
    workload = record.recipe.workload
    return {length: floor_ms(record.recipe.base.body, length, workload.batch, own, weights).ms for length in workload.lengths}


def _changes(first: Record, other: Record) -> dict[str, Change]:
    """By task, where both were measured on the same queries."""
    base = {result.task: result for result in first.final.accuracy}
    found = {}
    for result in other.final.accuracy:
        if result.task in base and unlike_results(base[result.task], result) is None:
            found[result.task] = accuracy_change(base[result.task], result)
    return found


def unlike_results(old: AccuracyResult, new: AccuracyResult) -> str | None:
    """Why two results of one task cannot be paired; None where they can."""
    if old.main_metric != new.main_metric:
        return f"judged by {old.main_metric} and by {new.main_metric}"
    if old.n_documents != new.n_documents:
        return f"{old.n_documents} documents and {new.n_documents}: the task itself changed"
    apart = old.metrics[old.main_metric].keys() ^ new.metrics[new.main_metric].keys()
    return f"{len(apart)} queries are in one record only: the task itself changed" if apart else None


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Milliseconds of each run's own day, what they come to, and accuracy where it was measured."""
    lengths = list(comparison.entries[0].ms)
    head = ["record", *map(str, lengths)]
    raw = [[entry.label, *(f"{entry.ms[length].point:.3g}" for length in lengths)] for entry in comparison.entries]
    rows = [[entry.label, *(_ratio_cell(entry.relative[length]) for length in lengths)] for entry in comparison.entries if entry.relative]
    first = comparison.entries[0].label
    if comparison.normalize == "floor":
        title = "Multiples of each machine's floor, by tokens"
        note = "1 would be the floor: the weights read once, or the products at the machine's peak. 95 % intervals."
    else:
        title = f"Times as fast as {first}, by tokens"
        note = "Speed-ups over the same fp32 baseline, timed in the same rounds, by each other; 95 % intervals."
    notes = " ".join([note, *(f"{text[0].upper()}{text[1:]}." for text in comparison.notes)])
    tables = [
        Table("p50 latency in ms by tokens", head, raw, "Each of its own run: not to be set against each other."),
        Table(title, head, rows, notes),
    ]
    tasks = list(dict.fromkeys(task for entry in comparison.entries for task in entry.accuracy))
    if tasks:
        shown = [[entry.label, *(_accuracy_cell(entry, task) for task in tasks)] for entry in comparison.entries]
        note = f"Mean of the task's metric; (relative change in % against {first} with its paired 95 % interval)."
        tables.append(Table("Accuracy", ["record", *tasks], shown, note))
    return tables


def _ratio_cell(interval: Interval) -> str:
    doubt = "" if interval.bounded else ", too few rounds"
    return f"{interval.point:.2f}x ({interval.low:.2f}..{interval.high:.2f}{doubt})"


def percent_cells(interval: Interval) -> tuple[str, str]:
    """A relative change and its interval, in %."""
    return f"{100 * interval.point:+.1f}", f"{100 * interval.low:+.1f}..{100 * interval.high:+.1f}"


def _accuracy_cell(entry: Compared, task: str) -> str:
    if task not in entry.accuracy:
        return ""
    shown = f"{entry.accuracy[task]:.4f}"
    return shown + (" ({} {})".format(*percent_cells(entry.change[task])) if task in entry.change else "")
