"""The options that several commands take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optbench.artifact.folder import Weights
from optbench.machine.cpu import Isa

if TYPE_CHECKING:
    from optbench.run.apply import Options
    from optbench.run.plan import Cache

__all__ = [
    "ERROR_STATUS",
    "BaseOption",
    "CacheFolder",
    "FromOption",
    "IsaOption",
    "Json",
    "Output",
    "RecipePath",
    "TaskOption",
    "WeightsOption",
    "cache_at",
    "run_options",
]

ERROR_STATUS = 2

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that optbench ships: minilm-l6.")]
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
    list[str] | None,
    typer.Option(
        "--task", help="A further accuracy task: a BEIR folder, XQuAD-R .json, STS .csv, a folder of either, mteb:NAME. Repeatable."
    ),
]
IsaOption = Annotated[Isa | None, typer.Option("--isa", help="Measure as a CPU with this instruction set would run it.")]
FromOption = Annotated[str | None, typer.Option("--from", help="Make this step and those after it again: a name, or a number from 0.")]


def cache_at(folder: Path | None) -> "Cache":
    """The cache in that folder; the user's own when left out."""
    import platformdirs

    from optbench.run.plan import Cache

    return Cache((folder or Path(platformdirs.user_cache_dir("optbench"))).absolute())


def run_options(
    cache: Path | None, output: Path, weights: Weights, base: str | None, tasks: list[str] | None, isa: Isa | None, from_step: str | None
) -> "Options":
    """A run's options from those of the command line."""
    from optbench.run.apply import Options
    from optbench.tasks import parse_task

    return Options(
        cache=cache_at(cache),
        output=output,
        weights=weights,
        base=base,
        tasks=tuple(parse_task(task) for task in tasks or []),
        isa=isa,
        from_step=from_step,
    )
