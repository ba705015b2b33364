"""Accuracy tables: each step on its own index and in the base's, and the mean over tasks or languages."""

from collections.abc import Mapping, Sequence

from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.statistics import Change
from optbench.measure.weighting import weighted_mean_change
from optbench.record.record import Record
from optbench.report.table import Table

__all__ = ["accuracy_table", "base_index_table", "query_side_table"]

# With more tasks or languages, only the base and the result are shown.
TASKS_WITH_STEPS_MAX = 3
MEAN = "weighted mean"


def accuracy_table(record: Record) -> Table | None:
    """One row per task and step: the metric and its relative change against the base; None without accuracy."""
    models = _models(record)
    (_, bases), *others = models.items()
    if not bases:
        return None
    rows = []
    for base in bases:
        for label, results in models.items():
            result = next((result for result in results if result.task == base.task), None)
            if result is not None:
                cells = ["", ""] if result is base else _change_cells(accuracy_change(base, result))
                rows.append([base.task, label, base.main_metric, f"{result.mean():.4f}", *cells])
    rows += [[MEAN, label, "", "", *_change_cells(change)] for label, results in others if (change := _mean(bases, results))]
    sizes = [f"{base.task} {base.n_queries}{' (synthetic)' if base.synthetic else ''}{_weight(base)}" for base in bases]
    note = f"Change: relative, in %, against the base in torch fp32, with its paired 95 % interval. Queries: {', '.join(sizes)}."
    title = "Accuracy after each step" if len(models) == len(record.points) else "Accuracy"
    return Table(title, ["task", "step", "metric", "value", "change", "interval"], rows, note)


def query_side_table(record: Record) -> Table | None:
    """One row per task and step: the step's queries in the base's index; None if not measured."""
    return base_index_table(_models(record))


def base_index_table(models: Mapping[str, Sequence[AccuracyResult]]) -> Table | None:
    """One row per task and model: the model's queries in the first model's index, and the overlap of the ten nearest documents.

    Args:
        models: label to results, the base first.

    Returns:
        None if none was measured in the base's index.
    """
    (base_label, bases), *others = models.items()
    rows = []
    for base in bases:
        for label, results in others:
            for result in results:
                if result.task == base.task and (result.overlap is not None or result.query_side is not None):
                    change = ["", ""] if result.query_side is None else _change_cells(accuracy_change(base, result.on_index("fp32")))
                    query_side = result.query_side.overlap if result.query_side else None
                    rows.append([base.task, label, *change, _share(query_side), _share(result.overlap)])
    if not rows:
        return None
    for label, results in others:
        in_base_index = [result.on_index("fp32") for result in results if result.query_side is not None]
        mean = _mean(bases, in_base_index) if len(in_base_index) == len(results) else None
        if mean is not None:
            rows.append([MEAN, label, *_change_cells(mean), "", ""])
    note = (
        f"Queries embedded by each model, documents by {base_label}: relative change in %, with its paired 95 % interval. Top 10: the mean "
        f"share of {base_label}'s ten nearest documents that stay among the ten nearest; own: with the model's own documents."
    )
    return Table(f"Queries in the index of {base_label}", ["task", "model", "change", "interval", "top 10", "own"], rows, note)


def _models(record: Record) -> dict[str, Sequence[AccuracyResult]]:
    """Label to results: of every step if there are few tasks, else of base and result."""
    few = len(record.points[0].accuracy) <= TASKS_WITH_STEPS_MAX
    return {point.label: point.accuracy for point in (record.points if few else (record.points[0], record.final))}


def _mean(bases: Sequence[AccuracyResult], results: Sequence[AccuracyResult]) -> Change | None:
    """The weighted mean change over tasks; None for fewer than two."""
    by_task = {base.task: base for base in bases}
    pairs = [(by_task[result.task], result) for result in results if result.task in by_task]
    return weighted_mean_change(pairs) if len(pairs) > 1 else None


def _change_cells(change: Change) -> list[str]:
    return [f"{100 * change.point:+.1f}", f"{100 * change.low:+.1f}..{100 * change.high:+.1f}"]


def _weight(base: AccuracyResult) -> str:
    return "" if base.weight == 1 else f" (weight {base.weight:.3g})"


def _share(shares: Mapping[str, float] | None) -> str:
    return f"{sum(shares.values()) / len(shares):.3f}" if shares else ""
