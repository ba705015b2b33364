"""Write the tables of docs/peers.md from bench/peers/results.

    python bench/peers/docs_tables.py

Replaces the text between the `peers` markers. Nothing else changes.
"""

from pathlib import Path

from pydantic import TypeAdapter

from bench.peers.runs import FOLDER, AccuracyRow, AccuracyRun, LatencyRow, LatencyRun
from bench.readme_table import replace_between
from optbench.errors import OptbenchError
from optbench.report.decimals import decimals_for
from optbench.report.table import Table, to_markdown

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
LENGTHS = (8, 16, 32, 128)
RUN: TypeAdapter[LatencyRun | AccuracyRun] = TypeAdapter(LatencyRun | AccuracyRun)
INPUTS = {"ids": "token ids to embedding", "text": "text to embedding, with tokenization and the library's own overhead"}


def latency_cells(row: LatencyRow, decimals: dict[int, int]) -> list[str]:
    """Milliseconds by length, and the speed-up over the first row at 16 tokens."""
    if row.reason is not None:
        return ["did not run", *[""] * len(LENGTHS)]
    at = row.speedup[16]
    ms = [f"{row.ms[length].point:.{decimals[length]}f}" for length in LENGTHS]
    return [*ms, f"{at.point:.2f} ({at.low:.2f}..{at.high:.2f})"]


def accuracy_cells(row: AccuracyRow | None, tasks: list[str]) -> list[str]:
    """Cosine, and the relative change on each task."""
    if row is None or row.reason is not None or row.fidelity is None:
        return [""] * (1 + len(tasks))
    changes = []
    for result in row.accuracy:
        change = row.change[result.task]
        same = change.low == change.high == 0
        changes.append(f"{result.mean():.4f}" if same else f"{100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})")
    return [f"{row.fidelity.mean:.4f} / {row.fidelity.minimum:.4f}", *changes]


def comparison(latency: LatencyRun, accuracy: AccuracyRun | None) -> str:
    """One model and one interface, in markdown."""
    # Peers that take ids and peers that take text run the same artifact, so accuracy is looked up by name.
    known = {row.name: row for row in accuracy.rows} if accuracy else {}
    tasks = [result.task for result in next(iter(known.values())).accuracy] if known else []
    head = ["peer", "precision", *(f"ms@{length}" for length in LENGTHS), "x@16", "cosine", *(f"nDCG@10 {task}" for task in tasks)]
    decimals = {length: decimals_for(row.ms[length].point for row in latency.rows if row.reason is None) for length in LENGTHS}
    rows, reasons = [], []
    for row in latency.rows:
        rows.append([row.name, row.precision, *latency_cells(row, decimals), *accuracy_cells(known.get(row.name), tasks)])
        why = row.reason or (known[row.name].reason if row.name in known else None)
        if why:
            reasons.append(f"{row.name} did not run: {why}.")
    weights = "" if latency.weights == "real" else " with random weights"
    title = f"## {latency.model}{weights}: {INPUTS[latency.interface]}\n\n"
    return title + to_markdown(Table("", head, rows, " ".join(reasons)))


def section() -> str:
    """Every table, in markdown."""
    runs = [RUN.validate_json(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))]
    accuracy = {run.model: run for run in runs if isinstance(run, AccuracyRun)}
    latency = sorted((run for run in runs if isinstance(run, LatencyRun)), key=lambda run: (run.weights, run.interface))
    if not latency:
        raise OptbenchError(f"{FOLDER}: no latency results; run pytest bench/peers first")
    first = latency[0]
    tables = [comparison(run, accuracy.get(run.model)) for run in latency]
    note = (
        f"{first.machine.cpu}, {first.threads} threads, batch 1, median ms; the peers of a table are timed in alternation. "
        "x: speed-up over the first row of the table, with its 95 % interval. Cosine: to torch eager over the queries, mean / worst. "
        "nDCG@10: the value of the first row, then the relative change in % with its paired 95 % interval; not measured with random "
        "weights. optimum-intel and sentence-transformers run OpenVINO with its defaults, which use bf16 on this CPU for everything but "
        "int8 products; the optbench and openvino rows run in fp32 there."
    )
    disturbed = [f"{run.model}, {run.interface}: {warning}." for run in latency for warning in run.warnings]
    return "\n".join([*tables, " ".join([note, *disturbed])])


def main() -> None:
    """Replace the section."""
    replace_between(PAGE, "peers", section())


if __name__ == "__main__":
    main()
