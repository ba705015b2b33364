"""The command that starts a recipe: init."""

from pathlib import Path
from typing import Annotated

import typer

from optbench.cli.options import CacheFolder, Json, cache_at
from optbench.cli.progress import watching
from optbench.cli.terminal import print_json, print_line, print_warnings
from optbench.model.checkpoint import Pooling

__all__ = ["init"]


def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, hub:ORG/NAME[@REVISION] or package:DISTRIBUTION.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe file. Default: NAME.yaml in the current folder.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The recipe's name. Default: derived from the model's.")] = None,
    pooling: Annotated[Pooling | None, typer.Option("--pooling", help="The pooling, if the model has no modules.json.")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Whether to normalize, if the model has no modules.json.")
    ] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="An SPDX identifier. Default: the license the model states.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Also obtain the weights, and compare ids and vectors with transformers' and sentence-transformers'.",
        ),
    ] = False,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Write a starter recipe from a model's config, pooling, prompts and license, and say what was found. Never overwrites a file."""
    from optbench.base.license import NOT_STATED
    from optbench.recipe.starter import read_model, write_recipe

    with watching() as watch:
        watch.begin("model")
        found = read_model(model, pooling=pooling, normalize=normalize, license_id=license_id, progress=watch.update)
        watch.end(found.source)
        path = write_recipe(found, output, name)
        if check:
            from optbench.recipe.load import load_recipe
            from optbench.run.apply import obtain

            obtain(load_recipe(path), cache_at(cache), watch)
    if as_json:
        print_json(
            "init", recipe=str(path), source=found.source, revision=found.revision, license=found.license, found=dict(found.findings)
        )
    else:
        for subject, finding in found.findings.items():
            print_line(f"{subject:14} {finding}")
        print_line(f"{path}: run optbench apply {path}")
    warnings = []
    if found.license == NOT_STATED:
        warnings.append(f"{found.source} states no license: write its SPDX identifier into {path} before publishing")
    if not found.states_prompts:
        warnings.append(f"{found.source} states no prompts: if its card names prefixes such as 'query: ', write them into {path}")
    print_warnings(warnings)
