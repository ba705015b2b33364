"""The headline table: one row per recipe."""

from collections.abc import Sequence

from optbench.machine.boxes import matching_box
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.statistics import Change, Interval
from optbench.record.record import Record
from optbench.record.verdict import fastest_baseline, judge
from optbench.report.table import Table, latency_interval, reading_length

__all__ = ["Headline", "Loss", "headline_of", "headline_table", "worst_loss"]


class Loss(Frozen):
    """The task that lost most accuracy, with its relative change against the base in torch fp32."""

    task: str
    synthetic: bool
    metric: str
    change: Change


class Headline(Frozen):
    """A record in one row.

    Attributes:
        model: the name it is published under, or the recipe's.
        license: of the base, which also applies to the artifact.
        tokens: input length of the latencies, which are medians.
        fp32: the fastest fp32 engine at that length.
        speedup: computed round by round.
        loss: None with random weights, or if no task was measured.
        box: the reference machine, or the CPU's own name.
        isa: the instruction set the run was limited to; None for no limit.
    """

    model: str
    recipe: str
    license: str
    base: str
    weights: str
    dimension: int
    tokens: int
    fp32: str
    fp32_ms: Interval
    optimized_ms: Interval
    speedup: Interval
    loss: Loss | None
    fp32_bytes: int
    optimized_bytes: int
    box: str
    threads: int
    isa: str | None
    verdict: str


def worst_loss(record: Record) -> Loss | None:
    """The largest measured loss; synthetic tasks count only if there are no others."""
    base = {result.task: result for result in record.points[0].accuracy}
    results = [result for result in record.final.accuracy if result.task in base]
    results = [result for result in results if not result.synthetic] or results
    losses = [_loss(base[result.task], result) for result in results]
    return min(losses, key=lambda loss: loss.change.point, default=None)


def _loss(base: AccuracyResult, result: AccuracyResult) -> Loss:
    return Loss(task=result.task, synthetic=result.synthetic, metric=result.main_metric, change=accuracy_change(base, result))


def headline_of(record: Record) -> Headline | None:
    """The headline of a record; None if its latency was not measured."""
    if record.final.timing is None or not record.baselines:
        return None
    length = reading_length(record)
    baseline, final = record.timing(fastest_baseline(record, length)), record.timing(record.final.timing)
    box = matching_box(record.machine)
    return Headline(
        model=record.recipe.publishes or record.recipe.name,
        recipe=record.recipe.name,
        license=record.recipe.base.license,
        base=record.recipe.base.source if record.base == "random" else record.base,
        weights=record.weights,
        dimension=record.recipe.base.description.embedding_dimension,
        tokens=length,
        fp32=baseline.label,
        fp32_ms=latency_interval(baseline, length),
        optimized_ms=latency_interval(final, length),
        speedup=final.times_as_fast_as(baseline, length),
        loss=worst_loss(record) if record.weights == "real" else None,
        fp32_bytes=record.points[0].size_bytes,
        optimized_bytes=record.final.size_bytes,
        box=box.name if box else record.machine.cpu,
        threads=record.threads,
        isa=record.isa,
        verdict=str(judge(record).outcome),
    )


def headline_table(records: Sequence[Record]) -> Table:
    """One row per record."""
    rows = [_row(found) for found in map(headline_of, records) if found is not None]
    note = (
        "fp32: the fastest fp32 engine on that machine; latencies are medians at batch 1; x is computed round by round. Loss: relative, "
        "in %, of the task that lost most, + is a gain; in parentheses 95 % intervals. MB: the base's files and the artifact's."
    )
    if any(record.weights == "random" for record in records):
        note += " Random weights: the latency is true, accuracy cannot be measured."
    columns = ["model", "license", "base", "dim", "tokens", "fp32 ms", "optimized ms", "x", "loss %", "MB", "box"]
    return Table("Headline", columns, rows, note)


def _row(found: Headline) -> list[str]:
    loss = "not measured"
    if found.loss is not None:
        change, synthetic = found.loss.change, ", synthetic" if found.loss.synthetic else ""
        interval = f"({100 * change.low:+.1f}..{100 * change.high:+.1f})"
        loss = f"{100 * change.point:+.1f} {interval} {found.loss.metric} {found.loss.task}{synthetic}"
    elif found.weights == "random":
        loss = "random weights"
    return [
        found.model,
        found.license,
        found.base.removeprefix("hub:").removeprefix("package:"),
        str(found.dimension),
        str(found.tokens),
        f"{found.fp32_ms.point:.3g}",
        f"{found.optimized_ms.point:.3g}",
        f"{found.speedup.point:.2f} ({found.speedup.low:.2f}..{found.speedup.high:.2f})",
        loss,
        f"{found.fp32_bytes / 1e6:.0f} -> {found.optimized_bytes / 1e6:.0f}",
        f"{found.box}, {found.threads} threads" + (f", {found.isa}" if found.isa else ""),
    ]
