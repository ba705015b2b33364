"""A record as tables: what each step bought and cost, latency by length, the verdict. Plain data; see `rich` and markdown below."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box as boxes
from rich.table import Table as RichTable

from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.statistics import percentile_interval, ratio_interval
from optbench.record import Point, Record
from optbench.verdict import Outcome, Verdict, fastest_baseline

__all__ = ["Table", "latency_table", "reading_length", "serving_table", "to_markdown", "to_rich", "tradeoff_table", "verdict_table"]


@dataclass(frozen=True)
class Table:
    """Cells as text, ready for a terminal or a card."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def reading_length(record: Record) -> int:
    """The length that one-figure summaries give: 16 tokens, a short query with its prompt, or the nearest judged one."""
    return min(record.recipe.workload.judged, key=lambda length: (abs(length - 16), length))


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def _accuracy_cell(base: AccuracyResult | None, result: AccuracyResult) -> str:
    value = result.mean(result.main_metric)
    if base is None or base is result:
        return f"{value:.4f}"
    change = accuracy_change(base, result)
    return f"{_percent(change.point)} ({_percent(change.low)}..{_percent(change.high)})"


def tradeoff_table(record: Record) -> Table:
    """One row a step: what it bought in milliseconds and megabytes, what it cost in accuracy."""
    length = reading_length(record)
    fastest = fastest_baseline(record, length) if record.baselines else None
    first = record.points[0]
    tasks = [result.task for result in first.accuracy]
    rows = []
    for point in record.points:
        row = [point.label, str(point.engine["engine"]), f"{point.size_bytes / 1e6:.0f}"]
        row += _speed_cells(record, point, fastest, length)
        fidelity = point.fidelity_to_base
        row.append(f"{fidelity.mean:.4f} / {fidelity.minimum:.4f}" if fidelity else "1")
        for task in tasks:
            base = next(result for result in first.accuracy if result.task == task)
            result = next((result for result in point.accuracy if result.task == task), None)
            row.append("" if result is None else _accuracy_cell(base, result))
        rows.append(row)
    note = f"x: speed-up over {fastest}, the fastest fp32 engine here at {length} tokens; cosine to fp32, mean / worst."
    if tasks:
        note += " Accuracy: the base's value, then the relative change in % with its paired 95 % interval."
    if record.weights == "random":
        note += " Random weights: the latency is true, cosine and accuracy mean nothing."
    metrics = [f"{first.accuracy[index].main_metric} {task}" for index, task in enumerate(tasks)]
    return Table("What each step bought and cost", ["step", "engine", "MB", f"ms@{length}", "x", "cosine", *metrics], rows, note)


def _speed_cells(record: Record, point: Point, fastest: str | None, length: int) -> list[str]:
    if point.timing is None or fastest is None:
        return ["", ""]
    timing = record.timing(point.timing)
    ratio = ratio_interval(record.timing(fastest).samples_ns[length], timing.samples_ns[length])
    return [f"{timing.median_ms(length):.2f}", f"{ratio.point:.2f}"]


def latency_table(record: Record, percentile: int = 50) -> Table:
    """Milliseconds by token length of every timed model, with the 95 % interval of the percentile."""
    lengths = sorted(record.recipe.workload.lengths)
    rows = []
    for timing in record.timings:
        cells = []
        for length in lengths:
            samples = [ns / 1e6 for block in timing.samples_ns[length] for ns in block]
            interval = percentile_interval(samples, percentile)
            cells.append(f"{interval.point:.3g} ±{interval.half_width:.1g}")
        rows.append([timing.label, *cells])
    note = f"{record.threads} threads, batch {record.recipe.workload.batch}, {record.machine.cpu}"
    note += f", held to {record.isa}" if record.isa else ""
    return Table(f"p{percentile} latency in ms by tokens", ["model", *map(str, lengths)], rows, note + ".")


def footprint_table(record: Record) -> Table:
    """Load time and memory of every timed model, from its own process."""
    rows = [
        [
            timing.label,
            f"{timing.load_ms:.0f}",
            f"{timing.memory.peak_rss_bytes / 1e6:.0f}",
            f"{timing.memory.anonymous_bytes / 1e6:.0f}",
            f"{timing.memory.file_bytes / 1e6:.0f}",
        ]
        for timing in record.timings
    ]
    return Table("Memory and load time", ["model", "load ms", "peak RSS MB", "own MB", "mapped MB"], rows, "After all lengths have run.")


def steps_table(record: Record) -> Table:
    """How long each step took and the memory that it needed, when it ran."""
    weight_bytes = 4 * record.recipe.base.body.parameters
    rows = [
        [
            point.label,
            f"{point.seconds:.1f}" + (" (cached)" if point.cached else ""),
            f"{point.peak_rss_bytes / 1e9:.2f}",
            f"{point.peak_rss_bytes / weight_bytes:.2f}",
            ", ".join(f"{count} {name}" for name, count in point.report.matched.items()),
        ]
        for point in record.points
    ]
    return Table("How the steps went", ["step", "seconds", "peak GB", "x fp32", "matched"], rows, "x fp32: peak RSS over the fp32 weights.")


def serving_table(record: Record) -> Table | None:
    """Tokenization and inference on the tasks' real queries; None where it was not measured."""
    serving = record.serving
    if serving is None:
        return None
    rows = []
    for name, nanoseconds in (
        ("tokenize", serving.tokenize_ns),
        ("embed", serving.embed_ns),
        ("encode: both and all around them", serving.encode_ns),
    ):
        milliseconds = [ns / 1e6 for ns in nanoseconds]
        cells = [percentile_interval(milliseconds, q) for q in (50, 90, 99)]
        rows.append([name, *(f"{cell.point:.3f}" for cell in cells)])
    tokens = sorted(serving.tokens)
    note = f"{len(tokens)} real queries one after another, {tokens[0]} to {tokens[-1]} tokens, median {tokens[len(tokens) // 2]}."
    return Table("Serving, ms a query", ["part", "p50", "p90", "p99"], rows, note)


def verdict_table(verdict: Verdict) -> Table:
    """Each target, its interval, and what became of it."""
    rows = []
    for finding in verdict.findings:
        if finding.unit == "relative change":
            shown = [
                f"{_percent(finding.value)} %",
                f"{_percent(finding.low)}..{_percent(finding.high)}",
                f">= {_percent(finding.limit)} %",
            ]
        else:
            sign = "<=" if finding.unit == "ms" else ">="
            shown = [
                f"{finding.value:.2f} {finding.unit}",
                f"{finding.low:.2f}..{finding.high:.2f}",
                f"{sign} {finding.limit:.2f} {finding.unit}",
            ]
        rows.append([finding.about, *shown, str(finding.outcome)])
    return Table(
        f"Verdict: {verdict.outcome}",
        ["target", "found", "interval", "wanted", "outcome"],
        rows,
        f"Intervals hold the true value with 95 % confidence. Judged by {verdict.judged_by}.",
    )


_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.INCONCLUSIVE: "yellow"}


def to_rich(table: Table) -> RichTable:
    """For a terminal."""
    shown = RichTable(title=table.title, caption=table.note, box=boxes.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0 and len(table.columns) > 4, overflow="fold")
    for row in table.rows:
        style = next((style for outcome, style in _STYLES.items() if row[-1] == outcome), None)
        shown.add_row(*row, style=style)
    return shown


def to_markdown(table: Table) -> str:
    """For a card or a README."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---", *("---:" for _ in table.columns[1:])]
    lines = [line(table.columns), line(rule), *(line(row) for row in table.rows)]
    return "\n".join([*lines, "", table.note]).rstrip() + "\n"
