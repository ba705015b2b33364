"""Commands that compare records: compare, gate."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from optbench.cli.options import Json
from optbench.cli.progress import watching
from optbench.cli.terminal import print_json, print_tables, print_warnings

__all__ = ["compare", "gate"]

RETIME_PROCESSES = 12


def compare(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD|FOLDER...", help="Two or more; for a folder, its newest record.")],
    normalize: Annotated[
        Literal["none", "floor"],
        typer.Option("--normalize", help="floor: compare different machines and models by multiples of each machine's latency floor."),
    ] = "none",
    peaks: Annotated[
        list[Path] | None, typer.Option("--peaks", help="The output of optbench probe --json on a record's machine. Repeatable.")
    ] = None,
    floor_format: Annotated[
        Literal["fp32", "bf16", "int8", "int4"], typer.Option("--floor-format", help="The weight format that the floor is computed for.")
    ] = "int8",
    as_json: Json = False,
) -> None:
    """Compare records by speed and accuracy against the first, with confidence intervals. Refuses records that are not comparable."""
    from optbench.machine.floor import read_probe
    from optbench.record.compare import compare as compare_records
    from optbench.record.record import find_record
    from optbench.report.compare import comparison_tables

    if peaks and normalize == "none":
        raise typer.BadParameter("used only with --normalize floor; add that or remove this", param_hint="--peaks")
    known = {probe.machine.fingerprint: probe.peaks for probe in map(read_probe, peaks or [])}
    comparison = compare_records([find_record(path) for path in records], normalize, peaks=known, floor_format=floor_format)
    if as_json:
        print_json("compare", **comparison.model_dump(mode="json"))
        return
    print_tables(comparison_tables(comparison))
    print_warnings(comparison.notes)


def gate(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The accepted record, or a folder: its newest record.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The record of the proposed change, or a folder.")],
    latency_limit: Annotated[float, typer.Option(min=0, help="The largest acceptable relative slowdown.")] = 0.05,
    accuracy_limit: Annotated[float, typer.Option(min=0, max=1, help="The largest acceptable relative loss of a task's metric.")] = 0.01,
    retime: Annotated[
        bool, typer.Option("--retime", help="Time both artifacts again, interleaved. OLD and NEW must be artifact folders.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=2, max=1000, help=f"With --retime: processes per artifact. Default: {RETIME_PROCESSES}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fail on a confirmed latency or accuracy regression. Exit status: 0 pass, 1 fail, 3 inconclusive."""
    from optbench.record.gate import gate as judge_records
    from optbench.record.record import find_record
    from optbench.report.gate import gate_table

    if processes is not None and not retime:
        raise typer.BadParameter("used only with --retime; add that or remove this", param_hint="--processes")
    judge = partial(judge_records, find_record(old), find_record(new), latency_limit=latency_limit, accuracy_limit=accuracy_limit)
    if retime:
        from optbench.run.artifacts import time_alternately

        with watching() as watch:
            result = judge(retime=partial(time_alternately, (old, new), processes=processes or RETIME_PROCESSES, listener=watch))
    else:
        result = judge()
    if as_json:
        print_json("gate", **result.model_dump(mode="json"))
    else:
        print_tables([gate_table(result)])
        print_warnings(result.notes)
    raise typer.Exit(result.exit_status)
