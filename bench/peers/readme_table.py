"""Write the README's comparison with its peers from bench/peers/results.

    python bench/peers/readme_table.py

The text between the two `peers` marks is replaced; nothing else is touched.
"""

from pathlib import Path

from pydantic import TypeAdapter

from bench.peers.runs import FOLDER, AccuracyRow, AccuracyRun, LatencyRow, LatencyRun
from optbench.errors import OptbenchError
from optbench.report.table import Table, to_markdown

README = Path(__file__).parent.parent.parent / "README.md"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
LENGTHS = (8, 16, 32, 128)
RUN: TypeAdapter[LatencyRun | AccuracyRun] = TypeAdapter(LatencyRun | AccuracyRun)
GIVEN = {"ids": "token ids in, embedding out", "text": "text in, embedding out: tokenization and the library's own overhead included"}


def latency_cells(row: LatencyRow) -> list[str]:
    """Milliseconds, and how many times as fast as the first row at 16 tokens."""
    if row.reason is not None:
        return ["did not run", *[""] * len(LENGTHS)]
    at = row.speedup[16]
    return [*(f"{row.ms[length].point:.3g}" for length in LENGTHS), f"{at.point:.2f} ({at.low:.2f}..{at.high:.2f})"]


def accuracy_cells(row: AccuracyRow | None, tasks: list[str]) -> list[str]:
    """Cosine, and each task's relative change."""
    if row is None or row.reason is not None or row.fidelity is None:
        return [""] * (1 + len(tasks))
    changes = []
    for result in row.accuracy:
        change = row.change[result.task]
        same = change.low == change.high == 0
        changes.append(f"{result.mean():.4f}" if same else f"{100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})")
    return [f"{row.fidelity.mean:.4f} / {row.fidelity.minimum:.4f}", *changes]


def comparison(latency: LatencyRun, accuracy: AccuracyRun | None) -> str:
    """One model, one interface."""
    # An artifact given ids and given text is the same artifact: accuracy is by name.
    known = {row.name: row for row in accuracy.rows} if accuracy else {}
    tasks = [result.task for result in next(iter(known.values())).accuracy] if known else []
    head = ["peer", "precision", *(f"ms@{length}" for length in LENGTHS), "x@16", "cosine", *(f"nDCG@10 {task}" for task in tasks)]
    rows, reasons = [], []
    for row in latency.rows:
        rows.append([row.name, row.precision, *latency_cells(row), *accuracy_cells(known.get(row.name), tasks)])
        why = row.reason or (known[row.name].reason if row.name in known else None)
        if why:
            reasons.append(f"{row.name} did not run: {why}.")
    weights = "" if latency.weights == "real" else ", random weights"
    title = f"**{latency.model}{weights}** ({GIVEN[latency.interface]})\n\n"
    return title + to_markdown(Table("", head, rows, " ".join(reasons)))


def section() -> str:
    """All of it in markdown."""
    runs = [RUN.validate_json(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))]
    accuracy = {run.model: run for run in runs if isinstance(run, AccuracyRun)}
    latency = sorted((run for run in runs if isinstance(run, LatencyRun)), key=lambda run: (run.weights, run.interface))
    if not latency:
        raise OptbenchError(f"{FOLDER}: holds no latencies; run pytest bench/peers first")
    first = latency[0]
    tables = [comparison(run, accuracy.get(run.model)) for run in latency]
    note = (
        f"{first.machine.cpu}, {first.threads} threads, batch 1, medians of rounds in which all peers of a table took turns. "
        "x: as many times as fast as the table's first row, with its 95 % interval. Cosine to torch eager over the queries, mean / worst. "
        "Accuracy: the first row's value, then the relative change in % with its paired 95 % interval; with random weights there is none. "
        "OpenVINO through optimum-intel and sentence-transformers is left at its defaults, which are bf16 for all but the int8 products "
        "where the CPU has it; optbench and the openvino row are held to fp32 there."
    )
    disturbed = [f"{run.model}, {run.interface}: {warning}." for run in latency for warning in run.warnings]
    return "\n".join([*tables, " ".join([note, *disturbed])])


def main() -> None:
    """Replace the section."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{section()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
