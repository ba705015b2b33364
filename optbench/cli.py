"""The command line: the only module that prints or exits.

Exit status: 0 done, or the verdict is pass; 1 the verdict is fail; 2 an error; 3 the verdict is inconclusive; 130 stopped by Ctrl-C.
Tables go to stdout, progress to stderr; with --json stdout holds one JSON document and nothing else.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

import optbench
from optbench.artifact import Weights
from optbench.errors import OptbenchError, RecipeError
from optbench.machine import Isa

if TYPE_CHECKING:
    from optbench.plan import Cache
    from optbench.report.table import Table
    from optbench.runner import Options

__all__ = ["main"]

# The form of every --json document; raised when a key changes its meaning or goes.
JSON_SCHEMA_VERSION = 1
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


class _Watch:
    """Progress on stderr: a live line on a terminal, one plain line a finished stage elsewhere."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._task: TaskID | None = None
        self._label, self._start = "", 0.0

    def begin(self, label: str) -> None:
        self._label, self._start = label, time.monotonic()
        self._task = self._progress.add_task(label, total=None, message="")

    def update(self, message: str, share: float | None) -> None:
        if self._task is not None:
            self._progress.update(self._task, message=message, total=1.0 if share is not None else None, completed=share or 0.0)

    def end(self, outcome: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._console.print(
            f"{time.monotonic() - self._start:7.1f} s  {self._label}: {outcome}", markup=False, highlight=False, soft_wrap=True
        )


@contextmanager
def _watching() -> Iterator[_Watch]:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[message]}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield _Watch(progress, console)
    except KeyboardInterrupt:
        console.print("stopped; what had finished is kept, and the next run goes on from there", markup=False, highlight=False)
        raise


def _print_json(command: str, **document: Any) -> None:
    print(json.dumps({"schema_version": JSON_SCHEMA_VERSION, "command": command, **document}, indent=2))  # noqa: T201


def _print_tables(tables: Sequence["Table | None"]) -> None:
    from optbench.report.table import to_rich

    console = Console()
    for table in tables:
        if table is not None and table.rows:
            console.print(to_rich(table))


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
        _print_json("check", recipes=results)
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
        _print_json(command, plan=document)
        return
    names = {-1: "baseline export"}
    rows = [["base", document["base"], "", "checkpoint", document["base_state"]]]
    rows += [
        [names.get(step["index"], str(step["index"])), step["step"], step["takes"], step["gives"], step["state"]]
        for step in document["steps"]
    ]
    note = f"At most {document['missing_bytes'] / 1e9:.1f} GB of disk for what is not cached."
    _print_tables([Table(f"Plan of {document['recipe']}", ["step", "what", "takes", "gives", "state"], rows, note)])


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
    with _watching() as watch:
        applied = runner.apply(loaded, options, watch)
    record, verdict = applied.record, applied.verdict
    if as_json:
        path = applied.folder / "records" / record.file_name
        _print_json("apply", folder=str(applied.folder), record=str(path), verdict=verdict.model_dump(mode="json"))
    else:
        _print_tables([tradeoff_table(record), latency_table(record), serving_table(record), verdict_table(verdict)])
        _print_warnings(record.warnings)
        Console().print(f"{applied.folder}: {verdict.outcome}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(verdict.exit_status)


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        Console(stderr=True).print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


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
    with _watching() as watch:
        measured = measure_artifacts(
            artifacts, engine, _parse_lengths(lengths), batch, rounds, options.tasks, options.cache, options.isa, watch
        )
    if as_json:
        _print_json("measure", **measured.model_dump(mode="json"))
    else:
        _print_tables(measured.tables())
        _print_warnings(measured.warnings)


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
    from optbench.record import newest_record, read_record
    from optbench.report.table import footprint_table, latency_table, serving_table, steps_table, tradeoff_table, verdict_table
    from optbench.verdict import judge

    chosen = paths or sorted(path.parent for path in Path("exported").glob("*/records"))
    if not chosen:
        raise OptbenchError("exported/: holds no records; run optbench apply RECIPE first, or name a record")
    records = [newest_record(path) if path.is_dir() else read_record(path) for path in chosen]
    if as_json:
        shown = [{"record": record.model_dump(mode="json"), "verdict": judge(record).model_dump(mode="json")} for record in records]
        _print_json("report", records=shown)
        return
    for record in records:
        Console().rule(f"{record.recipe.name} {record.created}" + (" (random weights)" if record.weights == "random" else ""))
        _print_tables(
            [
                tradeoff_table(record),
                latency_table(record, percentile),
                serving_table(record),
                footprint_table(record),
                steps_table(record),
                verdict_table(judge(record)),
            ]
        )
        _print_warnings(record.warnings)


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
    with _watching() as watch:
        watch.begin("probe")
        result = probe_machine()
        watch.end(result.machine.cpu)
    floors = floors_of_recipes(loaded, result.peaks, result.machine, output)
    if as_json:
        _print_json("probe", **result.model_dump(mode="json"), floors=[floor.model_dump(mode="json") for floor in floors])
        return
    _print_tables([machine_table(result), *(floor.table() for floor in floors)])


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(optbench.__version__)  # noqa: T201
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    try:
        app()
    except OptbenchError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(ERROR_STATUS)
