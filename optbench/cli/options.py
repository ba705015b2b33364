"""Options that several commands share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from optbench.artifact.manifest import Weights
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen

if TYPE_CHECKING:
    from optbench.run.cache import Cache
    from optbench.tasks import Task

__all__ = [
    "ArtifactPath",
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
    "parse_tasks",
    "refuse_together",
    "validated",
]

Model = TypeVar("Model", bound=Frozen)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
ArtifactPath = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact folder.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a bundled recipe such as minilm-l6.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", envvar="OPTBENCH_CACHE", help="Where finished work is kept. Default: the user's cache folder."),
]
Output = Annotated[Path, typer.Option("--output", help="The folder that holds one folder per recipe.")]
WeightsOption = Annotated[
    Weights, typer.Option("--weights", help="random measures the true latency of the architecture without downloading its weights.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", help="Use another model of the same architecture and size: path:DIR, hub:ORG/NAME@REVISION or package:DISTRIBUTION."
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Measure accuracy on another task: a BEIR folder, an XQuAD-R .json, an STS .csv, a folder of such files, or mteb:NAME. "
        "Repeatable.",
    ),
]
IsaOption = Annotated[Isa | None, typer.Option("--isa", help="Measure as a CPU with only this instruction set.")]
FromOption = Annotated[
    str | None, typer.Option("--from", help="Run this step and all later ones even if cached: a step's name, or its number from 0.")
]


def cache_at(folder: Path | None) -> "Cache":
    """The cache in a folder; the user's own by default."""
    import platformdirs

    from optbench.run.cache import Cache

    return Cache((folder or Path(platformdirs.user_cache_dir("optbench"))).absolute())


def refuse_together(options: Mapping[str, object]) -> None:
    """Refuse options of which only one can have an effect, by name and value; one that was not given is False or None.

    Raises:
        typer.BadParameter: names those that were given, if there are several.
    """
    given = [name for name, value in options.items() if value not in (False, None)]
    if len(given) > 1:
        raise typer.BadParameter(f"cannot be combined with {given[0]}; choose one", param_hint=given[1])


def validated(kind: "type[Model]", **options: Any) -> "Model":
    """Options as the part of a recipe that holds the same keys and checks their ranges.

    Raises:
        typer.BadParameter: names the first option that is out of range.
    """
    from pydantic import ValidationError

    try:
        return kind(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"{first['input']}: {first['msg']}", param_hint=f"--{option}") from error


def parse_tasks(tasks: list[str] | None) -> "tuple[Task, ...]":
    """The tasks of `--task`."""
    from optbench.tasks import parse_task

    return tuple(parse_task(task) for task in tasks or [])
