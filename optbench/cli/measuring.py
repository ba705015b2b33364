"""Commands that measure: artifacts against each other, under a service's load, for stability; and the machine itself."""

from pathlib import Path
from typing import Annotated

import typer

from optbench.cli.options import CacheFolder, IsaOption, Json, Output, TaskOption, run_options
from optbench.cli.terminal import print_json, print_line, print_tables, print_warnings, watching
from optbench.machine.cpu import Isa

__all__ = ["measure", "probe", "scenarios", "stability"]


def measure(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifact folders; all are timed in alternation.")],
    engine: Annotated[str | None, typer.Option("--engine", help="Engine settings as JSON, or an engine's name.")] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Token lengths, comma-separated.")] = "8,16,32,64,128",
    batch: Annotated[int, typer.Option("--batch", min=1)] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=3)] = 18,
    task: TaskOption = None,
    isa: IsaOption = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Measure artifacts: latency against each other; accuracy on tasks, alone and as queries in an index of the first artifact."""
    from optbench.run.standalone import measure_artifacts

    options = run_options(cache, Path("exported"), "real", None, task, isa, None)
    with watching() as watch:
        measured = measure_artifacts(
            artifacts, engine, _parse_numbers(lengths, "--lengths"), batch, rounds, options.tasks, options.cache, options.isa, watch
        )
    if as_json:
        print_json("measure", **measured.model_dump(mode="json"))
    else:
        print_tables(measured.tables())
        print_warnings(measured.warnings)


def _parse_numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise typer.BadParameter(f"{text!r}: give whole numbers from 1, separated by commas, such as 8,16,32", param_hint=option)
    return tuple(dict.fromkeys(int(part) for part in parts))


def probe(
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to give the floor of.")] = None,
    output: Output = Path("exported"),
    write_box: Annotated[
        str | None, typer.Option("--write-box", metavar="NAME", help="Also describe this machine in bench/boxes/NAME.yaml.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what this machine can do, and per recipe and length the floor in ms and how far above it the artifact is."""
    from optbench.machine import boxes
    from optbench.machine.cpu import read_machine
    from optbench.machine.floor import probe as probe_machine
    from optbench.recipe.load import load_recipe
    from optbench.run.standalone import describe_box, floors_of_recipes, machine_table

    loaded = [load_recipe(path) for path in recipes or []]
    # Written first: a name that is refused is refused at once, and the table below knows the box.
    box = None if write_box is None else boxes.write_box(describe_box(write_box, read_machine()))
    with watching() as watch:
        watch.begin("probe")
        result = probe_machine()
        watch.end(result.machine.cpu)
    floors = floors_of_recipes(loaded, result.peaks, result.machine, output)
    if as_json:
        written = {} if box is None else {"box_path": str(box)}
        print_json("probe", **result.model_dump(mode="json"), floors=[floor.model_dump(mode="json") for floor in floors], **written)
        return
    print_tables([machine_table(result), *(floor.table() for floor in floors)])
    if box is not None:
        print_line(f"{box}: written; add the recipes' limits there")


def stability(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    floor: Annotated[float | None, typer.Option(min=-1, max=1, help="Exit 1 if a condition's worst cosine is below.")] = None,
    texts: Annotated[int, typer.Option(min=16, help="Real texts that are compared.")] = 64,
    task: TaskOption = None,
    isa: Annotated[Isa | None, typer.Option("--isa", help="An instruction set to compare with.")] = None,
    as_json: Json = False,
) -> None:
    """Embed the same texts alone, padded, in batches and on other threads: do the vectors stay the same?"""
    from optbench.report.table import stability_table
    from optbench.run.standalone import measure_artifact_stability
    from optbench.tasks import Retail, parse_task

    chosen = [parse_task(each) for each in task or []] or [Retail()]
    with watching() as watch:
        watch.begin("stability")
        result = measure_artifact_stability(artifact, chosen, texts, [isa] if isa else [], watch.update)
        watch.end(f"{len(result.rows)} conditions")
    below = result.below(floor) if floor is not None else ()
    if as_json:
        print_json("stability", **result.model_dump(mode="json"), below=[row.condition for row in below])
    else:
        print_tables([stability_table(result)])
        print_warnings(result.explanations)
    if below:
        raise typer.Exit(1)


def scenarios(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Queries a second that arrive at random; the highest is searched for.")
    ] = None,
    limit_ms: Annotated[float | None, typer.Option(min=0.001, help="The p99 to keep; four single-stream p99 when left out.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long each run lasts.")] = 10.0,
    lengths: Annotated[str, typer.Option("--lengths", help="Fixed token lengths to run the single stream at, too.")] = "",
    batches: Annotated[str, typer.Option("--batches", help="Batch sizes of the offline scenario.")] = "1,8,32",
    task: TaskOption = None,
    isa: IsaOption = None,
    as_json: Json = False,
) -> None:
    """Latency as services see it: single stream, server with random arrivals, offline; one session or many."""
    from optbench.recipe.schema import Scenarios
    from optbench.report.table import Table
    from optbench.run.standalone import measure_artifact_scenarios
    from optbench.tasks import Retail, parse_task

    chosen = [parse_task(each) for each in task or []] or [Retail()]
    wanted = Scenarios(
        rate=rate,
        limit_ms=limit_ms,
        seconds=seconds,
        lengths=_parse_numbers(lengths, "--lengths") if lengths else (),
        batches=_parse_numbers(batches, "--batches"),
    )
    with watching() as watch:
        watch.begin("scenarios")
        result = measure_artifact_scenarios(artifact, chosen, wanted, isa, watch.update)
        watch.end("done")
    if as_json:
        print_json("scenarios", **result.model_dump(mode="json"))
    else:
        print_tables([Table(*rows) for rows in result.tables()])
        print_warnings(result.notes)
