"""Commands on records: report, compare, gate."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from optbench.cli.options import Json
from optbench.errors import OptbenchError
from optbench.terminal import print_json, print_tables, print_warnings

__all__ = ["compare", "gate", "report"]


def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[RECORD|FOLDER]...", help="Records or exported folders; all of exported/ when left out.")
    ] = None,
    percentile: Annotated[int, typer.Option("--percentile", min=1, max=99, help="Percentile of the latency table.")] = 50,
    as_json: Json = False,
) -> None:
    """Show records: what each step bought and cost, latency by length, the verdict. A folder shows its newest record."""
    from optbench.record import find_record
    from optbench.report.table import (
        accuracy_table,
        footprint_table,
        latency_table,
        serving_table,
        stability_table,
        steps_table,
        tradeoff_table,
        verdict_table,
    )
    from optbench.verdict import judge

    chosen = paths or sorted(path.parent for path in Path("exported").glob("*/records"))
    if not chosen:
        raise OptbenchError("exported/: holds no records; run optbench apply RECIPE first, or name a record")
    records = [find_record(path) for path in chosen]
    if as_json:
        shown = [{"record": record.model_dump(mode="json"), "verdict": judge(record).model_dump(mode="json")} for record in records]
        print_json("report", records=shown)
        return
    for record in records:
        Console().rule(f"{record.recipe.name} {record.created}" + (" (random weights)" if record.weights == "random" else ""))
        print_tables(
            [
                tradeoff_table(record),
                accuracy_table(record),
                latency_table(record, percentile),
                serving_table(record),
                stability_table(record.stability),
                footprint_table(record),
                steps_table(record),
                verdict_table(judge(record)),
            ]
        )
        print_warnings(record.warnings)


def compare(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD|FOLDER...", help="Two or more; a folder gives its newest record.")],
    as_json: Json = False,
) -> None:
    """Set records side by side: speed and accuracy against the first, with intervals. Refuses what cannot be compared."""
    from optbench.comparison import compare as compare_records
    from optbench.comparison import comparison_tables
    from optbench.record import find_record

    comparison = compare_records([find_record(path) for path in records])
    if as_json:
        print_json("compare", **comparison.model_dump(mode="json"))
        return
    print_tables(comparison_tables(comparison))
    print_warnings(comparison.notes)


def gate(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The record that stands, or a folder with records.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The record of what is proposed.")],
    latency_limit: Annotated[float, typer.Option(min=0, help="The share of time that may be added.")] = 0.05,
    accuracy_limit: Annotated[float, typer.Option(min=0, max=1, help="The share of a task's metric that may be lost.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Fail on a confirmed regression of latency or accuracy; exit status as that of a verdict."""
    from optbench.gate import gate as judge_change
    from optbench.gate import gate_table
    from optbench.record import find_record

    result = judge_change(find_record(old), find_record(new), latency_limit=latency_limit, accuracy_limit=accuracy_limit)
    if as_json:
        print_json("gate", **result.model_dump(mode="json"))
    else:
        print_tables([gate_table(result)])
        print_warnings(result.notes)
    raise typer.Exit(result.exit_status)
