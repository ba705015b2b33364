"""The command line: the only module that exits, and with terminal.py the only one that prints.

Exit status: 0 done, or the verdict is pass; 1 the verdict is fail; 2 an error; 3 the verdict is inconclusive; 130 stopped by Ctrl-C.
Tables go to stdout, progress to stderr; with --json stdout holds one JSON document and nothing else.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

import optbench
from optbench.artifact import Weights
from optbench.errors import OptbenchError, RecipeError
from optbench.machine import Isa
from optbench.terminal import print_json, print_tables, print_warnings, watching

if TYPE_CHECKING:
    from optbench.plan import Cache
    from optbench.runner import Options

__all__ = ["main"]

ERROR_STATUS = 2

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a text-embedding encoder fast on CPUs, and prove it.",
    epilog="Exit status: 0 done or pass, 1 fail, 2 error, 3 inconclusive, 130 stopped by Ctrl-C.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, such as recipes/minilm-l6.yaml.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", envvar="OPTBENCH_CACHE", help="Where finished work is kept; the user's cache folder when left out."),
]
Output = Annotated[Path, typer.Option("--output", help="The folder that gets one folder a recipe.")]
WeightsOption = Annotated[Weights, typer.Option("--weights", help="random: the true latency of the body without its weights, or a hub.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Run another model of the same body: path:DIR, hub:ORG/NAME@REVISION or package:NAME.")
]
TaskOption = Annotated[
    list[str] | None, typer.Option("--task", help="A further accuracy task: a BEIR folder, an XQuAD-R .json, an STS .csv. Repeatable.")
]
IsaOption = Annotated[Isa | None, typer.Option("--isa", help="Measure as a CPU with this instruction set would run it.")]
FromOption = Annotated[str | None, typer.Option("--from", help="Make this step and those after it again: a name, or a number from 0.")]


def _cache(folder: Path | None) -> "Cache":
    import platformdirs

    from optbench.plan import Cache

    return Cache((folder or Path(platformdirs.user_cache_dir("optbench"))).absolute())


def _options(
    cache: Path | None, output: Path, weights: Weights, base: str | None, tasks: list[str] | None, isa: Isa | None, from_step: str | None
) -> "Options":
    from optbench.runner import Options
    from optbench.tasks import parse_task

    return Options(
        cache=_cache(cache),
        output=output,
        weights=weights,
        base=base,
        tasks=tuple(parse_task(task) for task in tasks or []),
        isa=isa,
        from_step=from_step,
    )


@app.command()
def check(recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.")], as_json: Json = False) -> None:
    """Check recipes: every problem with file, line, key and cure. Loads nothing heavy."""
    from optbench.recipe import load_recipe

    results: list[dict[str, Any]] = []
    for path in recipes:
        try:
            recipe = load_recipe(path)
        except RecipeError as error:
            results.append({"path": str(path), "problems": str(error).splitlines()})
        else:
            results.append({"path": str(path), "problems": [], "name": recipe.name, "sha256": recipe.sha256, "steps": len(recipe.steps)})
    if as_json:
        print_json("check", recipes=results)
    for result in [] if as_json else results:
        if result["problems"]:
            Console(stderr=True).print("\n".join(result["problems"]), markup=False, highlight=False, soft_wrap=True)
        else:
            Console().print(f"{result['path']}: ok, {result['steps']} steps", markup=False, highlight=False)
    if any(result["problems"] for result in results):
        raise typer.Exit(ERROR_STATUS)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from optbench.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))  # noqa: T201


@app.command()
def plan(
    recipe: RecipePath,
    weights: WeightsOption = "real",
    base: BaseOption = None,
    from_step: FromOption = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Show which steps would run, and which are cached. Runs nothing."""
    from optbench import runner
    from optbench.recipe import load_recipe

    options = _options(cache, Path("exported"), weights, base, None, None, from_step)
    _show_plan("plan", runner.plan(load_recipe(recipe), options).model_dump(mode="json"), as_json)


def _show_plan(command: str, document: dict[str, Any], as_json: bool) -> None:
    from optbench.report.table import Table

    if as_json:
        print_json(command, plan=document)
        return
    names = {-1: "baseline export"}
    rows = [["base", document["base"], "", "checkpoint", document["base_state"]]]
    rows += [
        [names.get(step["index"], str(step["index"])), step["step"], step["takes"], step["gives"], step["state"]]
        for step in document["steps"]
    ]
    note = f"At most {document['missing_bytes'] / 1e9:.1f} GB of disk for what is not cached."
    print_tables([Table(f"Plan of {document['recipe']}", ["step", "what", "takes", "gives", "state"], rows, note)])


@app.command()
def apply(
    recipe: RecipePath,
    weights: WeightsOption = "real",
    base: BaseOption = None,
    task: TaskOption = None,
    isa: IsaOption = None,
    from_step: FromOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    output: Output = Path("exported"),
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: steps, measurements, verdict, and the artifact with its evidence under exported/."""
    from optbench import runner
    from optbench.recipe import load_recipe
    from optbench.report.table import latency_table, serving_table, tradeoff_table, verdict_table

    loaded = load_recipe(recipe)
    options = _options(cache, output, weights, base, task, isa, from_step)
    if dry_run:
        _show_plan("apply", runner.plan(loaded, options).model_dump(mode="json"), as_json)
        return
    with watching() as watch:
        applied = runner.apply(loaded, options, watch)
    record, verdict = applied.record, applied.verdict
    if as_json:
        path = applied.folder / "records" / record.file_name
        print_json("apply", folder=str(applied.folder), record=str(path), verdict=verdict.model_dump(mode="json"))
    else:
        print_tables([tradeoff_table(record), latency_table(record), serving_table(record), verdict_table(verdict)])
        print_warnings(record.warnings)
        Console().print(f"{applied.folder}: {verdict.outcome}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(verdict.exit_status)


@app.command()
def measure(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifact folders; all are timed in alternation.")],
    engine: Annotated[str | None, typer.Option("--engine", help="Engine settings as JSON, or an engine's name.")] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Token lengths, comma-separated.")] = "8,16,32,64,128",
    batch: Annotated[int, typer.Option("--batch", min=1)] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=3)] = 15,
    task: TaskOption = None,
    isa: IsaOption = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Measure artifacts: latency against each other, and accuracy on tasks."""
    from optbench.adhoc import measure_artifacts

    options = _options(cache, Path("exported"), "real", None, task, isa, None)
    with watching() as watch:
        measured = measure_artifacts(
            artifacts, engine, _parse_lengths(lengths), batch, rounds, options.tasks, options.cache, options.isa, watch
        )
    if as_json:
        print_json("measure", **measured.model_dump(mode="json"))
    else:
        print_tables(measured.tables())
        print_warnings(measured.warnings)


def _parse_lengths(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise typer.BadParameter(f"{text!r}: give whole numbers from 1, separated by commas, such as 8,16,32", param_hint="--lengths")
    return tuple(dict.fromkeys(int(part) for part in parts))


@app.command()
def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[RECORD|FOLDER]...", help="Records or exported folders; all of exported/ when left out.")
    ] = None,
    percentile: Annotated[int, typer.Option("--percentile", min=1, max=99, help="Percentile of the latency table.")] = 50,
    as_json: Json = False,
) -> None:
    """Show records: what each step bought and cost, latency by length, the verdict. A folder shows its newest record."""
    from optbench.record import find_record
    from optbench.report.table import footprint_table, latency_table, serving_table, steps_table, tradeoff_table, verdict_table
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
                latency_table(record, percentile),
                serving_table(record),
                footprint_table(record),
                steps_table(record),
                verdict_table(judge(record)),
            ]
        )
        print_warnings(record.warnings)


@app.command()
def probe(
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to give the floor of.")] = None,
    output: Output = Path("exported"),
    as_json: Json = False,
) -> None:
    """Show what this machine can do, and per recipe and length the floor in ms and how far above it the artifact is."""
    from optbench.adhoc import floors_of_recipes, machine_table
    from optbench.recipe import load_recipe
    from optbench.tune.floor import probe as probe_machine

    loaded = [load_recipe(path) for path in recipes or []]
    with watching() as watch:
        watch.begin("probe")
        result = probe_machine()
        watch.end(result.machine.cpu)
    floors = floors_of_recipes(loaded, result.peaks, result.machine, output)
    if as_json:
        print_json("probe", **result.model_dump(mode="json"), floors=[floor.model_dump(mode="json") for floor in floors])
        return
    print_tables([machine_table(result), *(floor.table() for floor in floors)])


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(optbench.__version__)  # noqa: T201
        raise typer.Exit


@app.command()
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


@app.command()
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


@app.command()
def stability(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    floor: Annotated[float | None, typer.Option(min=-1, max=1, help="Exit 1 if a condition's worst cosine is below.")] = None,
    texts: Annotated[int, typer.Option(min=16, help="Real texts that are compared.")] = 64,
    task: TaskOption = None,
    isa: Annotated[Isa | None, typer.Option("--isa", help="An instruction set to compare with.")] = None,
    as_json: Json = False,
) -> None:
    """Embed the same texts alone, padded, in batches and on other threads: do the vectors stay the same?"""
    from optbench.adhoc import measure_artifact_stability, stability_table
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


@app.command()
def scenarios(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Queries a second that arrive at random; the highest is searched for.")
    ] = None,
    limit_ms: Annotated[float | None, typer.Option(min=0.001, help="The p99 to keep; four single-stream p99 when left out.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each run lasts.")] = 10.0,
    task: TaskOption = None,
    isa: IsaOption = None,
    as_json: Json = False,
) -> None:
    """Latency as services see it: single stream, server with random arrivals, offline; one session or many."""
    from optbench.adhoc import measure_artifact_scenarios
    from optbench.report.table import Table
    from optbench.tasks import Retail, parse_task

    chosen = [parse_task(each) for each in task or []] or [Retail()]
    with watching() as watch:
        watch.begin("scenarios")
        result = measure_artifact_scenarios(artifact, chosen, rate, limit_ms, seconds, isa, watch.update)
        watch.end("done")
    if as_json:
        print_json("scenarios", **result.model_dump(mode="json"))
    else:
        print_tables([Table(*rows) for rows in result.tables()])
        print_warnings(result.notes)


def main() -> None:
    """Run the command line and exit with its status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    try:
        app()
    except OptbenchError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(ERROR_STATUS)
