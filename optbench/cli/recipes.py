"""Commands on recipes: check, schema, plan, apply."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optbench.cli.options import (
    BaseOption,
    CacheFolder,
    FromOption,
    IsaOption,
    Json,
    Output,
    RecipePath,
    TaskOption,
    WeightsOption,
    cache_at,
    parse_tasks,
    refuse_together,
)
from optbench.cli.progress import watching
from optbench.cli.terminal import (
    counted,
    print_json,
    print_line,
    print_stderr,
    print_summary,
    print_tables,
    print_text,
    print_warnings,
)
from optbench.errors import BaseModelError, RecipeError

if TYPE_CHECKING:
    from optbench.recipe.schema import Recipe
    from optbench.run.plan import Plan

__all__ = ["apply", "check", "plan", "schema"]


def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    task: TaskOption = None,
    isa: IsaOption = None,
    as_json: Json = False,
) -> None:
    """Check recipes, and that the files and packages they name are there; report every problem with its file, line, key and fix."""
    from optbench.base.obtain import check_source
    from optbench.recipe.load import load_recipe

    for each in parse_tasks(task):
        each.check_files()
    results: list[dict[str, Any]] = []
    for path in recipes:
        try:
            recipe = load_recipe(path, look_for_files=True)
            if isa is not None and (refusal := recipe.engine_for(recipe.steps[-1].gives).refusal(isa)):
                raise RecipeError(f"{path}: {refusal}")
            check_source(recipe.base)
        except BaseModelError as error:
            results.append({"path": str(path), "problems": [f"{path} base: {error}"]})
        except RecipeError as error:
            results.append({"path": str(path), "problems": str(error).splitlines()})
        else:
            results.append({"path": str(path), "problems": [], "name": recipe.name, "sha256": recipe.sha256, "steps": len(recipe.steps)})
    if as_json:
        print_json("check", recipes=results)
    for result in [] if as_json else results:
        if result["problems"]:
            print_stderr("\n".join(result["problems"]))
        else:
            print_line(f"{result['path']}: ok, {counted(result['steps'], 'step')}")
    if any(result["problems"] for result in results):
        raise typer.Exit(2)


def schema(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the recipe reference, docs/recipe.md, instead.")] = False,
) -> None:
    """Print the JSON schema of recipes, for editors that validate and complete YAML."""
    from optbench.recipe.reference import render_reference
    from optbench.recipe.schema import recipe_schema

    refuse_together({"--markdown": markdown, "--json": as_json})
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
    task: TaskOption = None,
    isa: IsaOption = None,
    from_step: FromOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First time the model's layers on this machine (minutes, once) to predict the pruned latency.")
    ] = False,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Show which steps would run, which are cached, and the predicted latency after pruning. Runs no step."""
    from optbench.recipe.load import load_recipe
    from optbench.run import apply as runner
    from optbench.run.plan import Options

    loaded = load_recipe(recipe)
    options = Options(cache=cache_at(cache), weights=weights, base=base, tasks=parse_tasks(task), isa=isa, from_step=from_step)
    if measure:
        with watching() as watch:
            runner.time_layers(loaded, options, watch)
    _show_plan("plan", loaded, runner.plan(loaded, options), as_json)


def _show_plan(command: str, recipe: "Recipe", planned: "Plan", as_json: bool) -> None:
    from optbench.report.table import Table
    from optbench.steps.base import LayerLatencies

    if as_json:
        print_json(command, plan=planned.model_dump(mode="json"))
        return
    rows = [["base", planned.base, "", "checkpoint", planned.base_state]]
    notes = [f"{note}." for note in planned.tasks]
    if planned.calibration:
        notes.append(f"Calibration: {planned.calibration}.")
    notes += [f"Steps that are not cached need at most {planned.missing_bytes / 1e9:.1f} GB of disk."]
    for step in planned.steps:
        place = "baseline export" if step.index == -1 else str(step.index)
        rows.append([place, step.step, step.takes, step.gives, step.state])
        if step.predicted_ms and step.whole_ms:
            pairs = [f"{step.whole_ms[length]:.3g} -> {after:.3g} at {length}" for length, after in step.predicted_ms.items()]
            notes.append(f"Predicted latency in ms by tokens, before -> after pruning every layer alike: {', '.join(pairs)}.")
        elif step.index >= 0 and any(isinstance(need, LayerLatencies) for need in recipe.steps[step.index].inputs()):
            notes.append("Latency of the pruned model: unknown until its layers are timed on this machine, by apply or by plan --measure.")
    print_tables([Table(f"Plan of {planned.recipe}", ["step", "name", "takes", "gives", "state"], rows, "\n".join(notes))])


def apply(
    recipe: RecipePath,
    weights: WeightsOption = "real",
    base: BaseOption = None,
    task: TaskOption = None,
    isa: IsaOption = None,
    from_step: FromOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and exit.")] = False,
    output: Output = Path("exported"),
    cache: CacheFolder = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print every table before the summary.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: its steps, the measurements and the verdict; write the artifact with its records and card to exported/."""
    from optbench.recipe.load import load_recipe
    from optbench.report.card import render_card
    from optbench.report.contents import record_tables
    from optbench.report.summary import noise_grouped, summarize
    from optbench.report.table import verdict_table
    from optbench.run import apply as runner
    from optbench.run.plan import Options

    refuse_together({"--verbose": verbose, "--json": as_json})
    refuse_together({"--verbose": verbose, "--dry-run": dry_run})
    loaded = load_recipe(recipe)
    options = Options(
        cache=cache_at(cache),
        output=output,
        weights=weights,
        base=base,
        tasks=parse_tasks(task),
        isa=isa,
        from_step=from_step,
    )
    if dry_run:
        _show_plan("apply", loaded, runner.plan(loaded, options), as_json)
        return
    with watching() as watch:
        applied = runner.apply(loaded, options, render_card, watch)
    record, verdict = applied.record, applied.verdict
    if as_json:
        path = applied.folder / "records" / record.file_name
        print_json("apply", folder=str(applied.folder), record=str(path), verdict=verdict.model_dump(mode="json"))
    else:
        if verbose:
            print_tables([*record_tables(record), verdict_table(verdict)])
        print_warnings(record.warnings if verbose else noise_grouped(record))
        print_summary(summarize(record, verdict, applied.folder))
    raise typer.Exit(verdict.exit_status)
