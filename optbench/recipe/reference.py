"""The recipe reference as a Markdown page, out of the recipe's JSON schema: `optbench schema --markdown`."""

import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from optbench.recipe.schema import recipe_schema
from optbench.steps import BaseStep, Step

__all__ = ["render_reference"]

Schema = Mapping[str, Any]

HEAD = """\
# Recipe reference

<!-- Written by `optbench schema --markdown > docs/recipe.md`; a test fails when it is stale. -->

A recipe is one YAML file. Unknown keys are errors, and `optbench check` names the file, the line, the key and the cure.
`optbench schema` prints the JSON schema that this page is made of: an editor that knows it completes and checks as you type.

A key without a default must be there. *null* means that the key may be left empty.
"""
# The unions: the recipe's key, the key that chooses, and what to call them.
UNIONS = (("steps", "step", "Steps"), ("engines", "engine", "Engines"), ("tasks", "task", "Tasks"))


def render_reference() -> str:
    """The whole page."""
    schema = recipe_schema()
    definitions: Schema = schema["$defs"]
    steps: tuple[type[BaseStep], ...] = typing.get_args(typing.get_args(Step)[0])
    kinds = {step.model_fields["step"].default: f"Takes {' or '.join(sorted(step.takes))}, gives {step.gives}." for step in steps}
    parts = [HEAD, _section("The recipe", 2, schema)]
    done: set[str] = set()
    for reference in _references(schema, definitions, skip={key for key, _, _ in UNIONS}):
        done.add(reference)
        parts.append(_section(_heading(reference), 3, definitions[reference]))
    for key, tag, title in UNIONS:
        parts.append(f"## {title}\n\nEach entry of `{key}` begins with `{tag}:`, which says which of these it is.\n")
        for name, target in schema["properties"][key]["items"]["discriminator"]["mapping"].items():
            model = definitions[target.rpartition("/")[2]]
            parts.append(_section(f"`{tag}: {name}`", 3, _required_first(model), without=tag, note=kinds.get(name, "")))
            for reference in _references(model, definitions, skip=set()):
                if reference not in done:
                    done.add(reference)
                    parts.append(_section(_heading(reference), 4, definitions[reference]))
    return "\n".join(parts)


def _heading(reference: str) -> str:
    """`FusionEntry` is the heading `Fusion entry`, and its anchor `fusion-entry`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", reference).capitalize()


def _references(schema: Schema, definitions: Schema, skip: set[str]) -> Iterator[str]:
    """The definitions that a model's properties name, and those that these name, first met first."""
    for key, value in schema["properties"].items():
        if key in skip:
            continue
        for reference in re.findall(r'"#/\$defs/(\w+)"', json.dumps(value)):
            yield reference
            yield from _references(definitions[reference], definitions, set())


def _required_first(model: Schema) -> Schema:
    """The same model: pydantic puts what entries of a union share in front, whether it must be there or not."""
    required = model.get("required", ())
    return {**model, "properties": dict(sorted(model["properties"].items(), key=lambda item: item[0] not in required))}


def _section(heading: str, level: int, model: Schema, *, without: str = "", note: str = "") -> str:
    about = " ".join(part for part in (" ".join(model.get("description", "").split()), note) if part)
    required = model.get("required", ())
    rows = [
        f"| `{key}` | {_type(value)} | {'' if key in required else _default(value)} | {_cell(value.get('description', ''))} |"
        for key, value in model["properties"].items()
        if key != without
    ]
    table = ["| key | form | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else ["It has no options."]
    return "\n".join([f"{'#' * level} {heading}", "", *([about, ""] if about else []), *table]) + "\n"


def _default(value: Schema) -> str:
    if "default" not in value:
        return ""
    default = value["default"]
    if isinstance(default, dict):
        return "its defaults"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _type(value: Schema) -> str:
    """A property's form in words: `integer, 1 to 256`."""
    if "$ref" in value:
        name = _heading(value["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower().replace(' ', '-')})"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(each) for each in value["anyOf"])).replace(" or null", "; or null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    kind = value.get("type")
    if kind == "array":
        items = value.get("prefixItems") or [value.get("items", {})]
        if "discriminator" in items[0]:
            return "list of " + ", ".join(f"`{name}`" for name in items[0]["discriminator"]["mapping"])
        return "list of " + " and ".join(dict.fromkeys(_type(each) for each in items))
    if kind == "null":
        return "null"
    if value.get("format") == "path":
        return "path"
    words = {"string": "text", "boolean": "true or false"}
    return str(words.get(str(kind), kind or "anything")) + _bounds(value)


def _bounds(value: Schema) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    above, below = value.get("exclusiveMinimum"), value.get("exclusiveMaximum")
    words = [f"above {above}"] if above is not None else []
    if low is not None and high is not None:
        words.append(f"{low} to {high}")
    else:
        words += [f"from {low}"] if low is not None else []
        words += [f"up to {high}"] if high is not None else []
    words += [f"below {below}"] if below is not None else []
    return f", {', '.join(words)}" if words else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
