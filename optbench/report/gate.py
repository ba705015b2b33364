"""The table of a gate's checks."""

from optbench.record.gate import GateResult
from optbench.report.table import Table, percent_cells, sentences

__all__ = ["gate_table"]


def gate_table(result: GateResult) -> Table:
    """One row per check: change, interval and outcome."""
    rows = []
    for check in result.checks:
        found, interval = ("", "") if check.change is None else percent_cells(check.change)
        rows.append([check.about, found, interval, f"{100 * check.limit:+.1f}", check.reason, str(check.outcome)])
    note = sentences("Changes in %, with 95 % intervals; more time and less accuracy are worse.", result.notes)
    return Table(f"Gate: {result.outcome}", ["what", "change", "interval", "limit", "reason", "outcome"], rows, note)
