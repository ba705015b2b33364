"""Commands on records that judge one by another: compare, gate."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from optbench.cli.options import Json
from optbench.cli.terminal import print_json, print_tables, print_warnings, watching

__all__ = ["compare", "gate"]

RETIME_PROCESSES = 12


def compare(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD|FOLDER...", help="Two or more; a folder gives its newest record.")],
    normalize: Annotated[
        Literal["none", "floor"],
        typer.Option("--normalize", help="floor: multiples of each machine's floor, across machines and bodies."),
    ] = "none",
    peaks: Annotated[
        list[Path] | None, typer.Option("--peaks", help="What optbench probe --json printed on a record's machine. Repeatable.")
    ] = None,
    floor_format: Annotated[
        Literal["fp32", "bf16", "int8", "int4"], typer.Option("--floor-format", help="The weights that the floor is computed for.")
    ] = "int8",
    as_json: Json = False,
) -> None:
    """Set records side by side: speed and accuracy against the first, with intervals. Refuses what cannot be compared."""
    from optbench.machine.floor import read_probe
    from optbench.record.compare import compare as compare_records
    from optbench.record.compare import comparison_tables
    from optbench.record.record import find_record

    if peaks and normalize == "none":
        raise typer.BadParameter("are used by --normalize floor alone; add it, or leave them out", param_hint="--peaks")
    known = {probe.machine.fingerprint: probe.peaks for probe in map(read_probe, peaks or [])}
    comparison = compare_records([find_record(path) for path in records], normalize, peaks=known, floor_format=floor_format)
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
    retime: Annotated[
        bool, typer.Option("--retime", help="Time both artifacts anew, in alternation: OLD and NEW are folders with their weights.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=2, max=1000, help="With --retime: how often each artifact is opened anew; 12 when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fail on a confirmed regression of latency or accuracy; exit status as that of a verdict."""
    from optbench.record.gate import gate as judge_change
    from optbench.record.gate import gate_table
    from optbench.record.record import find_record

    if processes is not None and not retime:
        raise typer.BadParameter("is used by --retime alone; add it, or leave this out", param_hint="--processes")
    judged = partial(judge_change, find_record(old), find_record(new), latency_limit=latency_limit, accuracy_limit=accuracy_limit)
    if retime:
        from optbench.run.standalone import time_alternately

        with watching() as watch:
            result = judged(retime=partial(time_alternately, (old, new), processes=processes or RETIME_PROCESSES, listener=watch))
    else:
        result = judged()
    if as_json:
        print_json("gate", **result.model_dump(mode="json"))
    else:
        print_tables([gate_table(result)])
        print_warnings(result.notes)
    raise typer.Exit(result.exit_status)
