"""Tables of artifacts measured against each other."""

from optbench.measure.accuracy import accuracy_change
from optbench.measure.statistics import percentile_interval
from optbench.report.accuracy import base_index_table
from optbench.report.table import Table, percent_cells
from optbench.run.artifacts import MeasuredArtifacts

__all__ = ["measured_tables"]


def measured_tables(measured: MeasuredArtifacts) -> list[Table]:
    """Median and tail latency by length, and accuracy, own and in the first artifact's index."""
    first = measured.timings[0]
    lengths = list(first.samples_ns)
    speed, tails = [], []
    for timing in measured.timings:
        cells, spread = [], []
        for length in lengths:
            ratio = timing.times_as_fast_as(first, length)
            cells.append(f"{timing.median_ms(length):.2f}" + ("" if timing is first else f" ({ratio.point:.2f}x)"))
            samples = [ns / 1e6 for block in timing.samples_ns[length] for ns in block]
            spread.append(" / ".join(f"{percentile_interval(samples, q).point:.2f}" for q in (90, 99)))
        speed.append([timing.label, *cells])
        tails.append([timing.label, *spread])
    head = ["model", *map(str, lengths)]
    tables = [
        Table("p50 latency in ms by tokens", head, speed, f"(x): speed-up over {first.label}, round by round."),
        Table("p90 / p99 latency in ms by tokens", head, tails),
    ]
    if not measured.accuracy:
        return tables
    base = {result.task: result for result in measured.accuracy[first.label]}
    rows = []
    for label, results in measured.accuracy.items():
        for result in results:
            change, interval = percent_cells(accuracy_change(base[result.task], result))
            shown = "" if label == first.label else f"{change} ({interval})"
            rows.append([label, f"{result.main_metric} {result.task}", f"{result.mean():.4f}", shown])
    note = f"Change: relative, in %, against {first.label}, with its paired 95 % interval."
    tables.append(Table("Accuracy", ["model", "metric", "value", "change"], rows, note))
    in_base_index = base_index_table(measured.accuracy)
    tables += [] if in_base_index is None else [in_base_index]
    return [*tables, _hostile_table(measured)] if measured.hostile else tables


def _hostile_table(measured: MeasuredArtifacts) -> Table:
    rows = [[label, f"{found.mean:.4f}", f"{found.minimum:.4f}"] for label, found in measured.hostile.items()]
    count = next(iter(measured.hostile.values())).n_texts
    note = f"{count} texts far from prose, such as repeated words, markup and part codes."
    return Table(f"Cosine to {measured.timings[0].label} over hostile texts", ["model", "mean", "worst"], rows, note)
