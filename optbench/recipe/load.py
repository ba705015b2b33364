"""Load a recipe: YAML 1.2 into the recipe's frozen models.

All problems are reported at once, each with file, line, key and cure.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optbench.artifact.manifest import Kind
from optbench.errors import RecipeError
from optbench.machine.registry import Registry
from optbench.recipe.schema import Recipe
from optbench.steps import STEPS

__all__ = ["find_recipe", "load_recipe"]

# The largest shipped recipe has 80 lines; the limits keep a hostile file from filling memory.
RECIPE_BYTES_MAX = 1024 * 1024
# What YAML abbreviates as !!.
STANDARD_TAGS = "tag:yaml.org,2002:"
NODES_MAX = 20_000
# A wheel holds the shipped recipes inside the package, a checkout beside it.
FOLDERS = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class _Problem:
    key: Key
    message: str


class _TagError(ValueError):
    """A value with an explicit YAML tag, such as `!!python/object`, under `key`."""

    def __init__(self, key: Key, message: str) -> None:
        super().__init__(message)
        self.key = key


def find_recipe(path: Path) -> Path:
    """Resolve a command's RECIPE argument: a file, or the name of a recipe that optbench ships."""
    if path.is_file() or path.suffix or path.name != str(path):
        return path
    return next((file for folder in FOLDERS if (file := folder / f"{path}.yaml").is_file()), path)


def load_recipe(path: Path, *, look_for_files: bool = False) -> Recipe:
    """Read and check a recipe: a file, or the name of one that optbench ships, such as `minilm-l6`.

    With `look_for_files`, the files, folders and packages that it names must be there; none is read.

    Raises:
        RecipeError: lists every problem, one per line: file:line, key, what was found, the cure.
    """
    path = find_recipe(path)
    data, lines = _read_yaml(path)
    problems = list(_check_finite(data, ()))
    try:
        recipe = Recipe.model_validate(data).placed_in(path.parent)
    except ValidationError as error:
        infinite = {problem.key for problem in problems}
        explained = [_explain(detail, data) for detail in error.errors(include_url=False)]
        raise _recipe_error(path, [*problems, *(problem for problem in explained if problem.key not in infinite)], lines) from error
    problems += _check_chain(recipe)
    if look_for_files:
        from optbench.recipe.files import missing_files

        problems += [_Problem(key, message) for key, message in missing_files(recipe)]
    if problems:
        raise _recipe_error(path, problems, lines)
    return recipe


def _recipe_error(path: Path, problems: Sequence[_Problem], lines: Mapping[Key, int]) -> RecipeError:
    messages = []
    for problem in problems:
        key = problem.key
        while key and key not in lines:
            key = key[:-1]
        messages.append(f"{path}:{lines[key]} {_dotted(problem.key) or 'top'}: {problem.message}")
    return RecipeError("\n".join(messages))


def _dotted(key: Key) -> str:
    """('steps', 2, 'fusions') -> 'steps[2].fusions'."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def _read_yaml(path: Path) -> tuple[Any, dict[Key, int]]:
    """Parse the file into plain data and the 1-based line of every key."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        if path.stat().st_size > RECIPE_BYTES_MAX:
            raise RecipeError(f"{path}:1 top: larger than the limit of {RECIPE_BYTES_MAX} bytes; pass a recipe file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        shipped = ", ".join(sorted({file.stem for folder in FOLDERS for file in folder.glob("*.yaml")}))
        raise RecipeError(
            f"{path}:1 top: cannot be read: {error.strerror}; pass a recipe file, or the name of a shipped recipe: {shipped}"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}:1 top: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "([^"]*)"', str(error.problem))
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line} {key[1] if key else 'key'}: duplicate key; remove one of the two") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{path}:{line} top: not YAML: {error.problem or error.context}; check indentation and quotes") from error
    except TypeError as error:  # ruamel.yaml hashes every key
        raise RecipeError(f"{path}:1 top: a key is a mapping or a list; write every key as plain text, and look for a stray '?'") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}:1 top: not YAML: {' '.join(str(error).split())[:200]}; check the file's characters") from error
    lines: dict[Key, int] = {(): 1}
    try:
        return _plain(tree, (), lines), lines
    except RecursionError as error:
        raise RecipeError(
            f"{path}:1 top: an alias refers to itself, or the nesting is too deep; write the recipe without aliases"
        ) from error
    except _TagError as error:
        raise _recipe_error(path, [_Problem(error.key, str(error))], lines) from error
    except ValueError as error:
        raise RecipeError(f"{path}:1 top: {error}") from error


def _plain(node: Any, key: Key, lines: dict[Key, int]) -> Any:
    """Convert ruamel.yaml's tree to plain data; adds the line of every key to `lines`."""
    # Of ruamel.yaml's nodes, only those with an explicit tag have a value there.
    if tag := getattr(getattr(node, "tag", None), "value", None):
        raise _TagError(key, f"the tag {str(tag).replace(STANDARD_TAGS, '!!')} is not supported; write the value without it")
    if len(lines) > NODES_MAX:
        raise ValueError(f"more than {NODES_MAX} entries after aliases are expanded; write the recipe without aliases")
    if isinstance(node, dict):
        marks = getattr(node, "lc", None)
        for name in node:
            # A key merged in with << has no line of its own.
            lines[*key, str(name)] = marks.key(name)[0] + 1 if marks is not None and name in (marks.data or {}) else lines[key]
        return {str(name): _plain(value, (*key, str(name)), lines) for name, value in node.items()}
    if isinstance(node, list):
        marks = getattr(node, "lc", None)
        for index in range(len(node)):
            lines[*key, index] = marks.item(index)[0] + 1 if marks is not None else lines[key]
        return [_plain(value, (*key, index), lines) for index, value in enumerate(node)]
    # ruamel.yaml keeps a scalar's notation in a subclass; strict models accept only the plain type.
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return None if node is None else str(node)


def _check_finite(node: Any, key: Key) -> Iterator[_Problem]:
    """Yield every `.inf` and `.nan`: no option of a recipe may be one."""
    if isinstance(node, float) and not math.isfinite(node):
        yield _Problem(key, f"{node} found; give a finite number")
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from _check_finite(child, (*key, name))


def _explain(detail: ErrorDetails, data: Any) -> _Problem:
    """Translate one of pydantic's errors to a key in the file and a cure."""
    key, model = _locate(detail["loc"], data)
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        names = list(model.model_fields) if model else []
        near = difflib.get_close_matches(str(key[-1]), names, n=1)
        cure = f"did you mean {near[0]}?" if near else f"remove it; known keys: {', '.join(names)}"
        return _Problem(key, f"unknown key; {cure}")
    if kind == "missing":
        return _Problem(key, "missing; add it" + _field_hint(model, key))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = detail.get("ctx", {})
        tag = str(context.get("discriminator", "")).strip("'")
        known = str(context.get("expected_tags", "")).replace("'", "")
        if not known:
            return _Problem(key, f"missing the key {tag}, which selects the kind of entry; add {tag}")
        found = str(context.get("tag", ""))
        near = difflib.get_close_matches(found, known.split(", "), n=1)
        return _Problem((*key, tag), f"{found!r} is not one of {known}" + (f"; did you mean {near[0]}?" if near else "; use one of them"))
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(given, (str, int, float, bool)) or given is None:
        message = f"{given!r} found; {message[0].lower()}{message[1:]}"
    return _Problem(key, message + _field_hint(model, key))


def _field_hint(model: type[BaseModel] | None, key: Key) -> str:
    field = model.model_fields.get(str(key[-1])) if model and key else None
    return f" ({field.description.rstrip('.')})" if field and field.description else ""


def _locate(location: tuple[int | str, ...], data: Any) -> tuple[Key, type[BaseModel] | None]:
    """Strip the names of union members from pydantic's location, and find the model that holds the last key."""
    key: list[str | int] = []
    annotation: Any = Recipe
    for position, part in enumerate(location):
        models = {model.__name__: model for model in _models(annotation, data)}
        if isinstance(part, str) and isinstance(data, dict) and part in models and part not in data and len(models) > 1:
            annotation = models[part]
            continue
        key.append(part)
        model = next(iter(models.values()), None) if len(models) == 1 else None
        if position == len(location) - 1:
            return tuple(key), model
        if isinstance(part, str) and model is not None and part in model.model_fields:
            annotation = model.model_fields[part].annotation
        data = data.get(part) if isinstance(data, dict) else data[part] if isinstance(data, list) and isinstance(part, int) else None
    return tuple(key), None


def _models(annotation: Any, data: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models inside an annotation, through tuples, unions and Annotated; of a registry, the one that `data` selects."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        yield annotation
        return
    arguments = typing.get_args(annotation)
    registry = next((argument for argument in arguments if isinstance(argument, Registry)), None)
    if registry is not None:
        selected = registry.selected(data)
        arguments = () if selected is None else (selected,)
    for argument in arguments:
        yield from _models(argument, data)


def _check_chain(recipe: Recipe) -> Iterator[_Problem]:
    """Yield what no single model can check: steps that do not fit together, duplicate engines, lengths beyond the model."""
    given, giver = Kind.CHECKPOINT, "the base"
    for index, step in enumerate(recipe.steps):
        if given not in step.takes:
            takes = " or ".join(sorted(step.takes))
            converters = [name for name in STEPS if STEPS.get(name).takes == {given} and STEPS.get(name).gives in step.takes]
            earlier = next((i for i, other in enumerate(recipe.steps[:index]) if other.takes & step.takes), None)
            if converters:
                cure = f"put {converters[0]} before it"
            elif earlier is not None:
                cure = f"move it before steps[{earlier}]"
            else:
                cure = f"start with steps that give {takes}"
            yield _Problem(("steps", index), f"{step.step}: takes {takes}, but {giver} gives {given}; {cure}")
        given, giver = step.gives, f"the step before ({step.step})"
    for index, engine in enumerate(recipe.engines):
        for earlier in range(index):
            if recipe.engines[earlier].engine == engine.engine:
                yield _Problem(("engines", index), f"duplicate engine {engine.engine}, also in engines[{earlier}]; remove one")
    if recipe.workload.lengths and max(recipe.workload.lengths) > recipe.base.max_tokens:
        yield _Problem(
            ("workload", "lengths"), f"{max(recipe.workload.lengths)} tokens, but base.max_tokens is {recipe.base.max_tokens}; remove it"
        )
