"""The recipe reference as a Markdown page, generated from the recipe's JSON schema: `optbench schema --markdown`."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from optbench.recipe.schema import recipe_schema
from optbench.steps import STEPS

__all__ = ["render_reference"]

Schema = Mapping[str, Any]

HEAD = """\
# Recipe reference

<!-- Written by `optbench schema --markdown > docs/recipe.md`; a test fails if it is outdated. -->

A recipe is one YAML file. Unknown keys are errors; `optbench check` reports the file, the line, the key and the fix.
`optbench schema` prints the JSON schema behind this page, for editors that validate and complete YAML.

Keys without a default are required. *null* means that the key may be empty.
"""
# The recipe's unions: key, discriminator, title.
UNIONS = (("steps", "step", "Steps"), ("engines", "engine", "Engines"), ("tasks", "task", "Tasks"))


def render_reference() -> str:
    """Render the page."""
    schema = recipe_schema()
    definitions: Schema = schema["$defs"]
    kinds = {name: f"Takes {' or '.join(sorted(step.takes))}, gives {step.gives}." for name, step in zip(STEPS, STEPS.all(), strict=True)}
    parts = [HEAD, _section("The recipe", 2, schema)]
    done: set[str] = set()
    for reference in _references(schema, definitions, skip={key for key, _, _ in UNIONS}):
        done.add(reference)
        parts.append(_section(_heading(reference), 3, definitions[reference]))
    for key, tag, title in UNIONS:
        parts.append(f"## {title}\n\n`{tag}:` selects the kind of each entry of `{key}`.\n")
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
    """Yield the definitions that a model's properties refer to, directly or not, in order of appearance."""
    for key, value in schema["properties"].items():
        if key in skip:
            continue
        for reference in re.findall(r'"#/\$defs/(\w+)"', json.dumps(value)):
            yield reference
            yield from _references(definitions[reference], definitions, set())


def _required_first(model: Schema) -> Schema:
    """The model with its required properties first; pydantic lists inherited ones first."""
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
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else ["It has no options."]
    return "\n".join([f"{'#' * level} {heading}", "", *([about, ""] if about else []), *table]) + "\n"


def _default(value: Schema) -> str:
    if "default" not in value:
        return ""
    default = value["default"]
    if isinstance(default, dict):
        return "its defaults"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _type(value: Schema) -> str:
    """A property's type in words: `integer, 1 to 256`."""
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
