"""Text tables of a record: what each step gained and cost, latency by length, the verdict. `fitted` renders them on a terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optbench.measure.latency import Timing
from optbench.measure.stability import STABILITY_COLUMNS, Stability, stability_rows
from optbench.measure.statistics import Interval, percentile_interval
from optbench.record.record import Point, Record
from optbench.record.verdict import Outcome, Verdict, fastest_baseline
from optbench.report.decimals import fixed
from optbench.report.text import inline

__all__ = [
    "Table",
    "footprint_table",
    "is_text_column",
    "latency_interval",
    "latency_table",
    "percent_cells",
    "reading_length",
    "scenario_tables",
    "sentences",
    "serving_table",
    "stability_table",
    "steps_table",
    "to_markdown",
    "tradeoff_table",
    "unsettled_reasons",
    "verdict_table",
]


WORD = re.compile(r"[^\W\d_]{3}")


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def is_text_column(table: Table, index: int) -> bool:
    """Whether a column is left-aligned: the first one, and those with words. Figures are right-aligned."""
    return index == 0 or any(WORD.search(row[index]) for row in table.rows)


def reading_length(record: Record) -> int:
    """The token length of summaries: 16, a short query with its prompt, or the nearest judged length."""
    return min(record.recipe.workload.judged, key=lambda length: (abs(length - 16), length))


def percent_cells(change: Interval) -> tuple[str, str]:
    """A relative change and its interval, in percent."""
    return f"{100 * change.point:+.1f}", f"{100 * change.low:+.1f}..{100 * change.high:+.1f}"


def sentences(note: str, notes: Sequence[str]) -> str:
    """A table's note followed by others, each capitalized and ended with a period."""
    return " ".join([note, *(f"{text[0].upper()}{text[1:]}." for text in notes)])


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def tradeoff_table(record: Record) -> Table:
    """One row per step: milliseconds, megabytes, and cosine of the embeddings to fp32, the worst over hostile texts beside the others."""
    length = reading_length(record)
    fastest = fastest_baseline(record, length) if record.baselines else None
    compared = [point.fidelity_to_base.n_texts for point in record.points if point.fidelity_to_base]
    worst = f"worst of {compared[-1]}" if compared else "worst"
    rows = []
    for point in record.points:
        fidelity = point.fidelity_to_base
        cosines = [f"{fidelity.mean:.4f}", f"{fidelity.minimum:.4f}"] if fidelity else ["1.0000", "1.0000"]
        speed = _speed_cells(record, point, fastest, length)
        rows.append(
            [point.label, str(point.engine["engine"]), f"{point.size_bytes / 1e6:.0f}", *speed, *cosines, *_hostile_cells(record, point)]
        )
    note = "Cosine to fp32: mean and worst text."
    if fastest is not None:
        note = f"x: speed-up over {fastest}, the fastest fp32 engine here at {length} tokens. {note}"
    if record.weights == "random":
        note += " Random weights: the latency is true, the cosine shows only that the graph computes the same function."
    columns = ["step", "engine", "MB", f"ms@{length}", "x", "cosine", worst]
    last = record.final.hostile_to_base
    if last is not None:
        columns.append("hostile")
        note += f" Hostile: the worst of {last.n_texts} texts far from prose, such as repeated words, markup and part codes"
        note += f"; mean at the last step {last.mean:.4f}."
    return Table("What each step bought and cost", columns, rows, note)


def _hostile_cells(record: Record, point: Point) -> list[str]:
    """No cell where the record has no hostile texts."""
    if record.final.hostile_to_base is None:
        return []
    return [f"{point.hostile_to_base.minimum:.4f}" if point.hostile_to_base else "1"]


def _speed_cells(record: Record, point: Point, fastest: str | None, length: int) -> list[str]:
    if point.timing is None or fastest is None:
        return ["", ""]
    timing = record.timing(point.timing)
    ratio = timing.times_as_fast_as(record.timing(fastest), length)
    return [f"{latency_interval(timing, length).point:.2f}", f"{ratio.point:.2f}"]


def latency_interval(timing: Timing, length: int, percentile: int = 50) -> Interval:
    """A percentile of a model's milliseconds at a token length, with its 95 % interval.

    The median's interval is over processes, as runs within one are not independent. Other percentiles need all runs, so their
    intervals hold only for these processes.
    """
    if percentile == 50:
        return timing.typical_ms(length)
    return percentile_interval([ns / 1e6 for block in timing.samples_ns[length] for ns in block], percentile)


def latency_table(record: Record, percentile: int = 50) -> Table:
    """Milliseconds by token length of every timed model, and the relative half-width of the widest interval."""
    lengths = sorted(record.recipe.workload.lengths)
    found = [[latency_interval(timing, length, percentile) for length in lengths] for timing in record.timings]
    columns = [fixed([interval.point for interval in column]) for column in zip(*found, strict=True)]
    widest = [f"{100 * max(interval.half_width / interval.point for interval in intervals):.1f}" for intervals in found]
    rows = [list(row) for row in zip([timing.label for timing in record.timings], *columns, widest, strict=True)]
    note = f"±%: the largest half-width of these 95 % intervals. {record.threads} threads, batch {record.recipe.workload.batch}, "
    note += record.machine.cpu + (f", limited to {record.isa}" if record.isa else "")
    return Table(f"p{percentile} latency in ms by tokens", ["model", *map(str, lengths), "±%"], rows, note + ".")


def footprint_table(record: Record) -> Table:
    """Load time and memory of every timed model, each in its own process."""
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
    """Time and peak memory of each step when it ran."""
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
    return Table(
        "Time and memory of the steps", ["step", "seconds", "peak GB", "x fp32", "matched"], rows, "x fp32: peak RSS over the fp32 weights."
    )


def serving_table(record: Record) -> Table | None:
    """Tokenization and inference on the tasks' real queries; None if not measured."""
    serving = record.serving
    if serving is None:
        return None
    rows = []
    for name, nanoseconds in (
        ("tokenize", serving.tokenize_ns),
        ("embed", serving.embed_ns),
        ("encode: both, and overhead", serving.encode_ns),
    ):
        milliseconds = [ns / 1e6 for ns in nanoseconds]
        cells = [percentile_interval(milliseconds, q) for q in (50, 90, 99)]
        rows.append([name, *(f"{cell.point:.3f}" for cell in cells)])
    tokens = sorted(serving.tokens)
    note = f"{len(tokens)} real queries one after another, {tokens[0]} to {tokens[-1]} tokens, median {tokens[len(tokens) // 2]}."
    return Table("Serving, ms a query", ["part", "p50", "p90", "p99"], rows, note)


def stability_table(stability: Stability | None) -> Table | None:
    """One row per condition; None if not measured."""
    if stability is None:
        return None
    note = f"{stability.n_texts} texts, {stability.n_documents} documents; the reference is {stability.reference}."
    return Table("Stability of the embeddings", STABILITY_COLUMNS, stability_rows(stability), note)


def scenario_tables(record: Record) -> list[Table]:
    """Single stream, server and offline under each concurrency model; empty if they were not run."""
    return [Table(*rows) for rows in record.scenarios.tables()] if record.scenarios else []


def verdict_table(verdict: Verdict) -> Table:
    """One row per target: value, interval and outcome."""
    rows = []
    for finding in verdict.findings:
        if finding.unit == "relative change":
            shown = [
                f"{_percent(finding.value)} %",
                f"{_percent(finding.low)}..{_percent(finding.high)}",
                f">= {_percent(finding.limit)} %",
            ]
        elif finding.unit == "cosine":
            shown = [f"{finding.value:.6f}", "", f">= {finding.limit:g}"]
        else:
            sign = "<=" if finding.unit == "ms" else ">="
            shown = [
                f"{finding.value:.2f} {finding.unit}",
                f"{finding.low:.2f}..{finding.high:.2f}",
                f"{sign} {finding.limit:.2f} {finding.unit}",
            ]
        rows.append([finding.about, *shown, str(finding.outcome)])
    note = f"95 % confidence intervals. Judged by {verdict.judged_by}."
    columns = ["target", "found", "interval", "required", "outcome"]
    return Table(f"Verdict: {verdict.title}", columns, rows, "\n".join([note, *unsettled_reasons(verdict)]))


def unsettled_reasons(verdict: Verdict) -> list[str]:
    """Why findings did not pass: a line a reason and outcome, with all findings that it applies to."""
    groups: dict[tuple[str, str], list[str]] = {}
    for finding in verdict.findings:
        if finding.outcome is not Outcome.PASS:
            groups.setdefault((str(finding.outcome), finding.reason), []).append(finding.about)
    return [f"{outcome.capitalize()}, {'; '.join(abouts)}: {reason}." for (outcome, reason), abouts in groups.items()]


def to_markdown(table: Table) -> str:
    """Render a markdown table with its note."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(inline(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if is_text_column(table, index) else "---:" for index in range(len(table.columns))]
    lines = [line(table.columns), line(rule), *(line(row) for row in table.rows)]
    return "\n".join([*lines, "", inline(table.note)]).rstrip() + "\n"
