"""Commands on recipes: check, schema, plan, apply."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from optbench.cli.options import (
    ERROR_STATUS,
    BaseOption,
    CacheFolder,
    FromOption,
    IsaOption,
    Json,
    Output,
    RecipePath,
    TaskOption,
    WeightsOption,
    run_options,
)
from optbench.cli.terminal import counted, print_json, print_line, print_tables, print_text, print_warnings, watching
from optbench.errors import RecipeError

__all__ = ["apply", "check", "plan", "schema"]


def check(recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.")], as_json: Json = False) -> None:
    """Check recipes: every problem with file, line, key and cure. Loads nothing heavy."""
    from optbench.recipe.load import load_recipe

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
            print_line(f"{result['path']}: ok, {counted(result['steps'], 'step')}")
    if any(result["problems"] for result in results):
        raise typer.Exit(ERROR_STATUS)


def schema(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the recipe reference instead, as docs/recipe.md holds it.")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    from optbench.recipe.reference import render_reference
    from optbench.recipe.schema import recipe_schema

    if markdown:
        print_text(render_reference().rstrip("\n"))
    elif as_json:
        print_json("schema", schema=recipe_schema())
    else:
        print_text(json.dumps(recipe_schema(), indent=2))


def plan(
    recipe: RecipePath,
    weights: WeightsOption = "real",
    base: BaseOption = None,
    from_step: FromOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the body's layers on this machine first (minutes, once), to foresee a pruned body's ms.")
    ] = False,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Show which steps would run, which are cached, and the milliseconds that pruning is to reach. Runs no step."""
    from optbench.recipe.load import load_recipe
    from optbench.run import apply as runner

    loaded = load_recipe(recipe)
    options = run_options(cache, Path("exported"), weights, base, None, None, from_step)
    if measure:
        with watching() as watch:
            runner.time_layers(loaded, options, watch)
    _show_plan("plan", runner.plan(loaded, options).model_dump(mode="json"), as_json)


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
    for step in document["steps"]:
        if step["step"] == "prune_structured":
            note += f"\n{_foreseen(step)}"
    print_tables([Table(f"Plan of {document['recipe']}", ["step", "what", "takes", "gives", "state"], rows, note)])


def _foreseen(step: dict[str, Any]) -> str:
    """What a plan says of a pruned body's latency."""
    if step["predicted_ms"] is None:
        return "Milliseconds of the pruned body: unknown until its layers are timed here, by apply or by plan --measure."
    pairs = [f"{whole:.3g} -> {step['predicted_ms'][length]:.3g} at {length}" for length, whole in step["whole_ms"].items()]
    return f"Foreseen ms by tokens, whole -> pruned evenly to the budget: {', '.join(pairs)}."


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
    from optbench.recipe.load import load_recipe
    from optbench.report.accuracy import accuracy_table, query_side_table
    from optbench.report.table import latency_table, serving_table, tradeoff_table, verdict_table
    from optbench.run import apply as runner

    loaded = load_recipe(recipe)
    options = run_options(cache, output, weights, base, task, isa, from_step)
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
        tables = [tradeoff_table(record), accuracy_table(record), query_side_table(record), latency_table(record), serving_table(record)]
        print_tables([*tables, verdict_table(verdict)])
        print_warnings(record.warnings)
        print_line(f"{applied.folder}: {verdict.outcome}")
    raise typer.Exit(verdict.exit_status)
