"""Write the results tables of README.md and docs/results.md from the newest records under exported/.

    python bench/readme_table.py

Replaces the text between the `results` markers of both files and redraws docs/speedup.svg. Nothing else changes.
"""

from collections.abc import Sequence
from pathlib import Path

from optbench.record.record import Record, newest_record
from optbench.record.verdict import fastest_baseline, judge
from optbench.report.accuracy import accuracy_table
from optbench.report.decimals import fixed
from optbench.report.headline import speed_target
from optbench.report.plots import headline_plot, save_figure
from optbench.report.table import Table, latency_interval, reading_length, to_markdown, tradeoff_table

ROOT = Path(__file__).parent.parent
FIGURE = "docs/speedup.svg"


def replace_between(path: Path, name: str, text: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


def summary_rows(records: Sequence[Record]) -> list[list[str]]:
    """One row per recipe: fp32 and optimized latency, the judged speed-ups, target, size and verdict."""
    rows = []
    for record in records:
        length = reading_length(record)
        labels = ("torch fp32", fastest_baseline(record, length), record.final.timing or "")
        rows.append([latency_interval(record.timing(label), length).point for label in labels])
    columns = [fixed(column) for column in zip(*rows, strict=True)]
    return [[record.recipe.name, *ms, *_judged_cells(record)] for record, *ms in zip(records, *columns, strict=True)]


def _judged_cells(record: Record) -> list[str]:
    verdict, lengths = judge(record), record.recipe.workload.judged
    speedups = [finding.value for finding in verdict.findings if finding.unit == "x"]
    return [
        f"{min(speedups):.2f}-{max(speedups):.2f} ({lengths[0]}-{lengths[-1]})",
        speed_target(record),
        f"{record.points[0].size_bytes / 1e6:.0f} -> {record.final.size_bytes / 1e6:.0f}",
        verdict.title,
    ]


def summary(records: Sequence[Record]) -> str:
    """The figure and one row per recipe, in markdown."""
    first = records[0]
    length = reading_length(first)
    columns = ["recipe", f"torch fp32, ms@{length}", "fastest fp32 engine", "optimized", "speed-up (tokens)", "target", "MB", "verdict"]
    note = (
        f"{first.machine.cpu}, {first.threads} threads, batch 1, median ms at {length} tokens. The speed-up is over the fastest fp32 "
        "engine at the judged lengths. Each row is a separate run: compare rows by their speed-ups, which are ratios within a run."
    )
    if random := [record.recipe.name for record in records if record.weights == "random"]:
        note += f" {', '.join(random)} ran with random weights: their latency is true, and their accuracy is not judged."
    about = "Speed-up of each recipe over the fastest fp32 engine of its run, with 95 % intervals, and its target in orange"
    return f"![{about}]({FIGURE})\n\n" + to_markdown(Table("", columns, summary_rows(records), note))


def steps(records: Sequence[Record]) -> str:
    """Latency, size, cosine and accuracy after every step of the recipes that ran with real weights, in markdown."""
    parts = []
    for record in records:
        if record.weights == "real":
            tables = (tradeoff_table(record), accuracy_table(record))
            parts += [f"### {record.recipe.name}\n", *(to_markdown(table) for table in tables if table is not None)]
    return "\n".join(parts)


def exported_records() -> list[Record]:
    """The newest record of each recipe under exported/."""
    return [newest_record(folder.parent) for folder in sorted((ROOT / "exported").glob("*/records"))]


def main() -> None:
    """Replace both sections and redraw the figure."""
    records = exported_records()
    save_figure(headline_plot(records), ROOT / FIGURE)
    replace_between(ROOT / "README.md", "results", summary(records))
    replace_between(ROOT / "docs" / "results.md", "results", steps(records))


if __name__ == "__main__":
    main()
