"""What a recipe names outside itself: files, folders and packages. Looks whether they are there, and reads none of them."""

from collections.abc import Iterator

from optbench.base.source import PackageSource, PathSource, parse_source
from optbench.errors import OptbenchError
from optbench.recipe.schema import Recipe
from optbench.steps.base import RecipeFiles
from optbench.tasks.corpus import find_corpus

__all__ = ["missing_files"]


def missing_files(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the key and the error of each entry that names a file, folder or package that is not there.

    A hub is not asked: that takes a network, and `optbench plan` names what it would download.
    """
    try:
        _find_base(recipe.base.source)
    except OptbenchError as error:
        yield ("base", "source"), str(error)
    for index, path in enumerate(recipe.calibration.files):
        try:
            find_corpus(recipe.folder / path)
        except OptbenchError as error:
            yield ("calibration", "files", index), str(error)
    for index, task in enumerate(recipe.tasks):
        try:
            task.check_files()
        except OptbenchError as error:
            yield ("tasks", index), str(error)
    for index, step in enumerate(recipe.steps):
        for need in step.inputs():
            if isinstance(need, RecipeFiles):
                try:
                    need.find(recipe.folder)
                except OptbenchError as error:
                    yield ("steps", index), f"{step.step}: {error}"


def _find_base(text: str) -> None:
    source = parse_source(text)
    if isinstance(source, PackageSource):
        from optbench.base.package import find_package

        find_package(source)
    elif isinstance(source, PathSource):
        from optbench.base.layout import find_files

        find_files(source.folder.expanduser())
