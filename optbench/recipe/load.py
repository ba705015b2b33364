"""Reading a recipe: YAML 1.2 into the recipe's frozen models.

Every problem is reported at once, each with file, line, key and cure.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optbench.artifact.folder import Kind
from optbench.errors import RecipeError
from optbench.recipe.schema import Recipe

__all__ = ["find_recipe", "load_recipe"]

# The largest recipe here has 80 lines; the bounds keep a hostile file from filling memory.
RECIPE_BYTES_MAX = 1024 * 1024
NODES_MAX = 20_000
# In a wheel the shipped recipes lie inside the package, in a checkout where DESIGN puts them.
FOLDERS = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class _Problem:
    key: Key
    message: str


def find_recipe(path: Path) -> Path:
    """The recipe file that a command names: the file itself, or one of those that optbench ships, by its name alone."""
    if path.is_file() or path.suffix or path.name != str(path):
        return path
    return next((file for folder in FOLDERS if (file := folder / f"{path}.yaml").is_file()), path)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Args:
        path: its file, or the name of a recipe that optbench ships: `minilm-l6`.

    Raises:
        RecipeError: every problem found, one a line: file:line, key, what was found, the cure.
    """
    path = find_recipe(path)
    data, lines = _read_yaml(path)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems = [_explain(detail, data) for detail in error.errors(include_url=False)]
        raise _recipe_error(path, problems, lines) from error
    problems = list(_check_chain(recipe))
    if problems:
        raise _recipe_error(path, problems, lines)
    return recipe.placed_in(path.parent)


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
    """The file as plain data, and the 1-based line of every key."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        if path.stat().st_size > RECIPE_BYTES_MAX:
            raise RecipeError(f"{path}:1 top: larger than {RECIPE_BYTES_MAX} bytes, which no recipe is; name a recipe file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        shipped = ", ".join(sorted({file.stem for folder in FOLDERS for file in folder.glob("*.yaml")}))
        raise RecipeError(
            f"{path}:1 top: cannot be read: {error.strerror}; name a recipe file, or one that optbench ships: {shipped}"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}:1 top: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "([^"]*)"', str(error.problem))
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line} {key[1] if key else 'key'}: stands twice; keep one of the two") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{path}:{line} top: not YAML: {error.problem or error.context}; check indentation and quotes") from error
    except TypeError as error:  # ruamel.yaml hashes every key
        raise RecipeError(
            f"{path}:1 top: a key is itself a mapping or a list; write every key as plain text, and look for a stray '?'"
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}:1 top: not YAML: {' '.join(str(error).split())[:200]}; check the file's characters") from error
    lines: dict[Key, int] = {(): 1}
    try:
        return _plain(tree, (), lines), lines
    except RecursionError as error:
        raise RecipeError(f"{path}:1 top: refers to itself or nests too deeply; write the recipe flat") from error
    except ValueError as error:
        raise RecipeError(f"{path}:1 top: {error}") from error


def _plain(node: Any, key: Key, lines: dict[Key, int]) -> Any:
    """Plain data from ruamel's tree, noting the line of every key."""
    if len(lines) > NODES_MAX:
        raise ValueError(f"has more than {NODES_MAX} entries, which no recipe has; aliases may be multiplying them")
    if isinstance(node, dict):
        marks = getattr(node, "lc", None)
        for name in node:
            # A key merged in with << has no place of its own.
            lines[*key, str(name)] = marks.key(name)[0] + 1 if marks is not None and name in (marks.data or {}) else lines[key]
        return {str(name): _plain(value, (*key, str(name)), lines) for name, value in node.items()}
    if isinstance(node, list):
        marks = getattr(node, "lc", None)
        for index in range(len(node)):
            lines[*key, index] = marks.item(index)[0] + 1 if marks is not None else lines[key]
        return [_plain(value, (*key, index), lines) for index, value in enumerate(node)]
    # ruamel keeps how a scalar was written in a subclass; strict models want the plain type.
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return None if node is None else str(node)


def _explain(detail: ErrorDetails, data: Any) -> _Problem:
    """One of pydantic's errors as a key in the file, with a cure."""
    key, model = _locate(detail["loc"], data)
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        names = list(model.model_fields) if model else []
        near = difflib.get_close_matches(str(key[-1]), names, n=1)
        cure = f"did you mean {near[0]}?" if near else f"remove it; known here: {', '.join(names)}"
        return _Problem(key, f"unknown key; {cure}")
    if kind == "missing":
        return _Problem(key, "missing; add it" + _field_hint(model, key))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = detail.get("ctx", {})
        tag = str(context.get("discriminator", "")).strip("'")
        known = str(context.get("expected_tags", "")).replace("'", "")
        if not known:
            return _Problem(key, f"has no {tag} key that says which kind it is; add {tag}")
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
    """Pydantic's location without the tags of unions, and the model that holds the last key.

    Union tags stand in the location as a part of their own: steps, 2, quantize_static, alpha.
    """
    key: list[str | int] = []
    annotation: Any = Recipe
    for position, part in enumerate(location):
        models = {_tag_of(model): model for model in _models(annotation)}
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


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models inside an annotation, through tuples, unions and Annotated."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _tag_of(model: type[BaseModel]) -> str:
    """The value that selects a model in its union; its own name where it has none."""
    for name in ("step", "engine", "task", "name"):
        field = model.model_fields.get(name)
        values = typing.get_args(field.annotation) if field else ()
        if len(values) == 1 and isinstance(values[0], str):
            return values[0]
    return model.__name__


def _check_chain(recipe: Recipe) -> Iterator[_Problem]:
    """Each step must take what the one before gives."""
    given, giver = Kind.CHECKPOINT, "the base"
    for index, step in enumerate(recipe.steps):
        if given not in step.takes:
            takes = " or ".join(sorted(step.takes))
            converters = [tag for tag, gives in _CONVERTERS.items() if gives in step.takes and given == _CONVERTS_FROM[tag]]
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
                yield _Problem(("engines", index), f"{engine.engine} stands twice, in engines[{earlier}] too; keep one")
    if recipe.workload.lengths and max(recipe.workload.lengths) > recipe.base.max_tokens:
        yield _Problem(
            ("workload", "lengths"), f"{max(recipe.workload.lengths)} tokens, but base.max_tokens is {recipe.base.max_tokens}; shorten it"
        )


_CONVERTERS = {"export_onnx": Kind.ONNX, "convert_openvino": Kind.OPENVINO}
_CONVERTS_FROM = {"export_onnx": Kind.CHECKPOINT, "convert_openvino": Kind.ONNX}
