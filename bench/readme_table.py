"""Write the README's results from the newest records under exported/.

    python bench/readme_table.py

The text between the two `results` marks is replaced, and the figure that stands there is drawn anew; nothing else is touched.
"""

from collections.abc import Sequence
from pathlib import Path

from optbench.record.record import Record, newest_record
from optbench.record.verdict import fastest_baseline, judge
from optbench.report.accuracy import accuracy_table
from optbench.report.page import save_figure
from optbench.report.plots import headline_plot
from optbench.report.table import Table, latency_interval, reading_length, to_markdown, tradeoff_table

ROOT = Path(__file__).parent.parent
FIGURE = "docs/speedup.svg"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def summary_row(record: Record) -> list[str]:
    """One recipe: fp32 and optimized latency, the speed-ups that were judged, size, verdict."""
    length = reading_length(record)
    verdict = judge(record)
    final = record.timing(record.final.timing or "")
    speedups = [finding.value for finding in verdict.findings if finding.unit == "x"]
    lengths = record.recipe.workload.judged
    return [
        record.recipe.name,
        f"{latency_interval(record.timing('torch fp32'), length).point:.3g}",
        f"{latency_interval(record.timing(fastest_baseline(record, length)), length).point:.3g}",
        f"{latency_interval(final, length).point:.3g}",
        f"{min(speedups):.2f}-{max(speedups):.2f} ({lengths[0]}-{lengths[-1]})",
        f">= {record.recipe.targets.speedup:.2f}",
        f"{record.points[0].size_bytes / 1e6:.0f} -> {record.final.size_bytes / 1e6:.0f}",
        f"{verdict.outcome}" + (" (latency)" if record.weights == "random" else ""),
    ]


def results(records: Sequence[Record]) -> str:
    """The results section in markdown."""
    first = records[0]
    length = reading_length(first)
    columns = ["recipe", f"torch fp32, ms@{length}", "fastest fp32 engine", "optimized", "speed-up (tokens)", "target", "MB", "verdict"]
    note = (
        f"{first.machine.cpu}, {first.threads} threads, batch 1, medians. Speed-ups are over the fastest fp32 engine, over the judged "
        "lengths. Each row is a run of its own: compare rows by their speed-ups, which are ratios within a run. The three large bodies "
        "ran with random weights, as no model hub could be reached: their latency is true, their accuracy is not judged. The others ran "
        "with their real weights, step by step:"
    )
    about = "Speed-up of each recipe over the fastest fp32 engine of its run, with 95 % intervals"
    parts = [f"![{about}]({FIGURE})\n", to_markdown(Table("", columns, [summary_row(record) for record in records], note))]
    for record in records:
        if record.weights == "real":
            tables = (tradeoff_table(record), accuracy_table(record))
            parts += [f"**{record.recipe.name}**\n", *(to_markdown(table) for table in tables if table is not None)]
    return "\n".join(parts)


def main() -> None:
    """Replace the section, and draw its figure."""
    records = [newest_record(folder.parent) for folder in sorted((ROOT / "exported").glob("*/records"))]
    save_figure(headline_plot(records), ROOT / FIGURE)
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{results(records)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
