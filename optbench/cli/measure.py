"""Commands that measure: artifacts by latency, accuracy, stability and under load; and the machine."""

from pathlib import Path
from typing import Annotated

import typer

from optbench.cli.options import ArtifactPath, CacheFolder, IsaOption, Json, Output, TaskOption, cache_at, parse_tasks, validated
from optbench.cli.progress import watching
from optbench.cli.terminal import print_json, print_line, print_tables, print_warnings
from optbench.errors import EngineError
from optbench.machine.cpu import Isa

__all__ = ["measure", "probe", "scenarios", "stability"]


def measure(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifact folders; they are timed interleaved.")],
    engine: Annotated[str | None, typer.Option("--engine", help="An engine's name, or its settings as JSON.")] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Token lengths, comma-separated.")] = "8,16,32,64,128",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts per batch.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Interleaved rounds per artifact.")] = 18,
    task: TaskOption = None,
    isa: IsaOption = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Measure artifacts side by side: latency, and accuracy on tasks, also with queries against an index of the first artifact."""
    from optbench.recipe.schema import Workload
    from optbench.report.measured import measured_tables
    from optbench.run.artifacts import measure_artifacts, read_subjects

    workload = validated(Workload, lengths=_parse_numbers(lengths, "--lengths"), batch=batch, rounds=rounds)
    with watching() as watch:
        measured = measure_artifacts(read_subjects(artifacts, engine, isa), workload, parse_tasks(task), cache_at(cache), watch)
    if as_json:
        print_json("measure", **measured.model_dump(mode="json"))
    else:
        print_tables(measured_tables(measured))
        print_warnings(measured.warnings)


def _parse_numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise typer.BadParameter(f"{text!r}: expected positive whole numbers separated by commas, such as 8,16,32", param_hint=option)
    return tuple(dict.fromkeys(int(part) for part in parts))


def probe(
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes whose latency floor to compute.")] = None,
    output: Output = Path("exported"),
    write_box: Annotated[
        str | None,
        typer.Option("--write-box", metavar="NAME", help="Also describe this machine in bench/boxes/NAME.yaml, as a reference box."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine's peaks, and compute each recipe's latency floor beside the latency its artifact reached."""
    from optbench.machine import boxes
    from optbench.machine.cpu import read_machine
    from optbench.machine.floor import probe as probe_machine
    from optbench.measure.machine_state import describe_box
    from optbench.recipe.load import load_recipe
    from optbench.report.floors import floor_table, machine_table
    from optbench.run.floors import floors_of_recipes

    loaded = [load_recipe(path) for path in recipes or []]
    # Written first: a bad name fails at once, and the table finds the box.
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
    print_tables([machine_table(result), *(floor_table(floor) for floor in floors)])
    if box is not None:
        print_line(f"{box}: written; add the limits of your recipes to it")


def stability(
    artifact: ArtifactPath,
    floor: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Exit with 1 if the worst cosine under any condition is below this.")
    ] = None,
    texts: Annotated[int, typer.Option(min=16, help="Number of real texts to compare.")] = 64,
    task: TaskOption = None,
    isa: Annotated[Isa | None, typer.Option("--isa", help="Also compare with this instruction set.")] = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Check that embeddings do not change with batching, padding or the number of threads."""
    from optbench.measure.subject import Subject
    from optbench.report.table import stability_table
    from optbench.run.measure import TaskTexts, measure_text_stability
    from optbench.tasks import load_tasks
    from optbench.tasks.retail import Retail

    tasks = parse_tasks(task) or (Retail(),)
    with watching() as watch:
        watch.begin("stability")
        subject = Subject.read(artifact)
        if isa is not None and (refusal := subject.engine.refusal(isa)):
            raise EngineError(refusal)
        sample = TaskTexts.sample(load_tasks(tasks), 2 * texts)
        result = measure_text_stability(subject, sample, cache_at(cache), [isa] if isa else [], watch.update)
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
    artifact: ArtifactPath,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Also measure this rate of random arrivals, in queries per second. The highest rate is always searched."
        ),
    ] = None,
    limit_ms: Annotated[
        float | None, typer.Option(min=0.001, help="The p99 latency limit. Default: four times the single-stream p99.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Duration of each run.")] = 10.0,
    lengths: Annotated[str, typer.Option("--lengths", help="Also run the single stream at these token lengths, comma-separated.")] = "",
    batches: Annotated[str, typer.Option("--batches", help="Batch sizes of the offline scenario, comma-separated.")] = "1,8,32",
    batch_delay_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1000,
            help="Also serve concurrent queries in common batches, as AsyncEncoder does; a query waits this long for others.",
        ),
    ] = None,
    task: TaskOption = None,
    isa: IsaOption = None,
    as_json: Json = False,
) -> None:
    """Measure an artifact under service load: single stream, server with random arrivals, offline; in one session, in many, in batches."""
    from optbench.measure.subject import Subject
    from optbench.recipe.schema import Scenarios
    from optbench.report.table import Table
    from optbench.run.measure import measure_load
    from optbench.tasks import load_tasks
    from optbench.tasks.retail import Retail

    tasks = parse_tasks(task) or (Retail(),)
    settings = validated(
        Scenarios,
        rate=rate,
        limit_ms=limit_ms,
        seconds=seconds,
        lengths=_parse_numbers(lengths, "--lengths") if lengths else (),
        batches=_parse_numbers(batches, "--batches"),
        batch_delay_ms=batch_delay_ms,
    )
    with watching() as watch:
        watch.begin("scenarios")
        result = measure_load(Subject.read(artifact, isa), load_tasks(tasks), settings, watch.update)
        watch.end("done")
    if as_json:
        print_json("scenarios", **result.model_dump(mode="json"))
    else:
        print_tables([Table(*rows) for rows in result.tables()])
        print_warnings(result.notes)
