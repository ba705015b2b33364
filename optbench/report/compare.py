"""Tables of compared records."""

from optbench.measure.statistics import Interval
from optbench.record.compare import Compared, Comparison
from optbench.report.decimals import fixed
from optbench.report.table import Table, percent_cells, sentences

__all__ = ["comparison_tables"]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Milliseconds of each run, speed-ups or multiples of the floor, and accuracy if measured."""
    lengths = list(comparison.entries[0].ms)
    head = ["record", *map(str, lengths)]
    columns = [fixed([entry.ms[length].point for entry in comparison.entries]) for length in lengths]
    raw = [list(row) for row in zip([entry.label for entry in comparison.entries], *columns, strict=True)]
    rows = [[entry.label, *(_ratio_cell(entry.relative[length]) for length in lengths)] for entry in comparison.entries if entry.relative]
    first = comparison.entries[0].label
    if comparison.normalize == "floor":
        title = "Multiples of each machine's floor, by tokens"
        note = "1 is the floor: reading the weights once, or the multiplications at the machine's peak. 95 % intervals."
    else:
        title = f"Speed-up over {first}, by tokens"
        note = "The ratio of both runs' speed-ups over the same fp32 baseline, each timed in the same rounds; 95 % intervals."
    tables = [
        Table("p50 latency in ms by tokens", head, raw, "Each from its own run: do not compare them directly."),
        Table(title, head, rows, sentences(note, comparison.notes)),
    ]
    tasks = list(dict.fromkeys(task for entry in comparison.entries for task in entry.accuracy))
    if tasks:
        shown = [[entry.label, *(_accuracy_cell(entry, task) for task in tasks)] for entry in comparison.entries]
        note = f"Mean of the task's metric; (relative change in % against {first} with its paired 95 % interval)."
        tables.append(Table("Accuracy", ["record", *tasks], shown, note))
    return tables


def _ratio_cell(interval: Interval) -> str:
    unbounded = "" if interval.bounded else ", too few rounds"
    return f"{interval.point:.2f}x ({interval.low:.2f}..{interval.high:.2f}{unbounded})"


def _accuracy_cell(entry: Compared, task: str) -> str:
    if task not in entry.accuracy:
        return ""
    shown = f"{entry.accuracy[task]:.4f}"
    return shown + (" ({} {})".format(*percent_cells(entry.change[task])) if task in entry.change else "")
