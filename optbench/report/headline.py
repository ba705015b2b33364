"""The headline: one row per recipe, with its verdict and targets, and what each model is."""

from collections.abc import Mapping, Sequence

from optbench.machine.boxes import matching_box
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.statistics import Change, Interval
from optbench.recipe.schema import Targets
from optbench.record.record import Record
from optbench.record.verdict import fastest_baseline, judge, judged_in_ms
from optbench.report.decimals import fixed
from optbench.report.table import Table, latency_interval, percent_cells, reading_length

__all__ = ["Headline", "Loss", "headline_of", "headline_tables", "speed_target", "title_of", "worst_loss"]


class Loss(Frozen):
    """The task that lost most accuracy, with its relative change against the base in torch fp32."""

    task: str
    synthetic: bool
    metric: str
    change: Change


class Headline(Frozen):
    """A record in one row.

    Attributes:
        model: its title.
        license: of the base, which also applies to the artifact.
        tokens: input length of the latencies, which are medians.
        fp32: the fastest fp32 engine at that length.
        speedup: computed round by round.
        loss: None with random weights, or if no task was measured.
        box: the reference machine, or the CPU's own name.
        isa: the instruction set the run was limited to; None for no limit.
        targets: the recipe's.
        target: the one that applies to the speed on this machine, in words.
        latency_only: the weights are random, so the verdict is about latency alone.
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
    targets: Targets
    target: str
    verdict: str
    latency_only: bool

    @property
    def outcome(self) -> str:
        """The verdict as people read it."""
        return f"{self.verdict}, latency only" if self.latency_only else self.verdict


def title_of(record: Record) -> str:
    """The name the model is published under, or the recipe's; always the recipe's if the weights were random."""
    return (record.recipe.publishes if record.weights == "real" else None) or record.recipe.name


def speed_target(record: Record) -> str:
    """The latency target that applies on this machine: `<= 40 ms`, `>= 2.25x (90 -> 40 ms)` or `>= 1.50x`."""
    targets = record.recipe.targets
    if targets.latency_ms is None:
        return f">= {targets.speedup:.2f}x"
    if judged_in_ms(record):
        return f"<= {targets.latency_ms:g} ms"
    return f">= {targets.speedup:.2f}x ({targets.baseline_ms:g} -> {targets.latency_ms:g} ms)"


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
        model=title_of(record),
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
        targets=record.recipe.targets,
        target=speed_target(record),
        verdict=str(judge(record).outcome),
        latency_only=record.weights == "random",
    )


def headline_tables(records: Sequence[Record]) -> list[Table]:
    """What each recipe reached of its targets, and what each model is: one row per record in both."""
    found = [each for each in map(headline_of, records) if each is not None]
    names = [each.model for each in found]
    answers = {
        "verdict": [each.outcome for each in found],
        "tokens": [str(each.tokens) for each in found],
        "fp32 ms": fixed([each.fp32_ms.point for each in found]),
        "optimized ms": fixed([each.optimized_ms.point for each in found]),
        "x": [f"{each.speedup.point:.2f} ({each.speedup.low:.2f}..{each.speedup.high:.2f})" for each in found],
        "target": [each.target for each in found],
        "loss %": ["" if each.loss is None else "{} ({})".format(*percent_cells(each.loss.change)) for each in found],
        "allowed": ["" if each.latency_only else f"{-100 * each.targets.accuracy_loss_max:+.1f}" for each in found],
        "on": [_task(each) for each in found],
    }
    note = (
        "fp32: the fastest fp32 engine on that machine; latencies are medians at batch 1; x is computed round by round, and the target "
        "holds at every judged length. Loss: relative, in the main metric of the task that lost most, + is a gain; in parentheses 95 % "
        "intervals."
    )
    if any(each.latency_only for each in found):
        note += " Latency only: the weights were random, so the latency is true and accuracy cannot be measured."
    models = {
        "base": [each.base.removeprefix("hub:").removeprefix("package:") for each in found],
        "license": [each.license for each in found],
        "MB": [f"{each.fp32_bytes / 1e6:.0f} -> {each.optimized_bytes / 1e6:.0f}" for each in found],
        "dim": [str(each.dimension) for each in found],
        "fp32 engine": [each.fp32 for each in found],
        "box": [f"{each.box}, {each.threads} threads" + (f", {each.isa}" if each.isa else "") for each in found],
    }
    return [
        _by_model("Headline", names, answers, note),
        _by_model("Models and machines", names, models, "MB: the base's files and the artifact's."),
    ]


def _by_model(title: str, names: Sequence[str], columns: Mapping[str, Sequence[str]], note: str = "") -> Table:
    """A table of these columns, each row headed by a model's name."""
    return Table(title, ["model", *columns], [list(row) for row in zip(names, *columns.values(), strict=True)], note)


def _task(found: Headline) -> str:
    if found.loss is None:
        return "random weights" if found.latency_only else "not measured"
    return found.loss.task + (", synthetic" if found.loss.synthetic else "")
