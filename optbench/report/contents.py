"""The tables of a record in reading order, for the terminal, the card and the page."""

import shlex

from optbench.record.record import Record
from optbench.report.accuracy import accuracy_table, query_side_table
from optbench.report.table import (
    Table,
    footprint_table,
    latency_table,
    scenario_tables,
    serving_table,
    stability_table,
    steps_table,
    tradeoff_table,
)

__all__ = ["command_of", "record_tables"]


def record_tables(record: Record, percentile: int = 50) -> list[Table]:
    """The non-empty tables of a record, without the verdict's."""
    tables = [
        tradeoff_table(record),
        accuracy_table(record),
        query_side_table(record),
        latency_table(record, percentile),
        serving_table(record),
        *scenario_tables(record),
        stability_table(record.stability),
        footprint_table(record),
        steps_table(record),
    ]
    return [table for table in tables if table is not None and table.rows]


def command_of(record: Record) -> str:
    """The command that makes the artifact again, quoted for a shell: the record may be untrusted."""
    words = ["optbench", "apply", f"recipes/{record.recipe.name}.yaml"]
    if record.weights == "random":
        words += ["--weights", "random"]
    elif record.base != record.recipe.base.source:
        words += ["--base", " ".join(record.base.split())]
    if record.isa:
        words += ["--isa", record.isa]
    return shlex.join(words)
