"""The README.md of an exported artifact: what it is, how fast, at what cost, how to run it and how to make it again."""

import json

from optbench.record import Record
from optbench.report.accuracy import accuracy_table, query_side_table
from optbench.report.table import (
    Table,
    footprint_table,
    latency_table,
    scenario_tables,
    serving_table,
    stability_table,
    steps_table,
    to_markdown,
    tradeoff_table,
    verdict_table,
)
from optbench.verdict import Verdict

__all__ = ["render_card"]


def render_card(record: Record, verdict: Verdict) -> str:
    """Hugging Face model-card form: front matter, then markdown."""
    recipe = record.recipe
    name = recipe.publishes or recipe.name
    command = f"optbench apply recipes/{recipe.name}.yaml"
    if record.weights == "random":
        command += " --weights random"
    elif record.base != recipe.base.source:
        command += f" --base {record.base}"
    command += f" --isa {record.isa}" if record.isa else ""
    model = recipe.base.source.removeprefix("hub:")
    front = ["---", f"license: {recipe.base.license.lower()}"]
    if recipe.base.source.startswith("hub:"):
        # JSON strings are YAML strings: a hostile name cannot break out of the front matter.
        front += [f"base_model: {json.dumps(model)}", "base_model_relation: quantized"]
    front += ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity", "tags: [optbench, sentence-transformers]", "---"]
    parts = ["\n".join(front), f"# {name}"]
    if record.weights == "random":
        parts.append(
            "> **Random weights.** This run proves latency, memory and the steps on a body of this shape. Its embeddings mean nothing: "
            "accuracy was not judged, and the cosines below say only that the graph still computes the same function."
        )
    parts.append(
        f"{recipe.description or 'A text-embedding encoder for CPUs.'} Made from `{record.base}` by optbench {record.optbench}: "
        f"{', '.join(step.step for step in recipe.steps)}. Dimension {recipe.base.body.hidden}, {recipe.base.pooling} pooling"
        f"{', normalized' if recipe.base.normalize else ''}, at most {recipe.base.max_tokens} tokens."
    )
    parts.append(_section("Verdict", verdict_table(verdict)))
    parts += [_section(table.title, table) for table in _tables(record)]
    parts.append(
        f'## Load it\n\n```python\nimport optbench\n\nencoder = optbench.load("{recipe.name}")  # this folder\n'
        'vectors = encoder.encode(["running shoes"], prompt="query")\n```'
    )
    parts.append(f"## Make it again\n\n```\npip install optbench=={record.optbench}\n{command}\n```")
    machine = record.machine
    libraries = ", ".join(f"{library} {number}" for library, number in record.libraries.items())
    parts.append(
        f"## Measured on\n\n{machine.cpu}, {machine.usable_threads} usable threads, {machine.memory_bytes / 2**30:.0f} GiB, {machine.isa}"
        f"{f', held to {record.isa}' if record.isa else ''}, {machine.system}; {record.created}; {libraries}."
    )
    if record.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {warning}" for warning in record.warnings))
    return "\n\n".join(parts) + "\n"


def _tables(record: Record) -> list[Table]:
    tables = [tradeoff_table(record), accuracy_table(record), query_side_table(record), latency_table(record), serving_table(record)]
    tables += [*scenario_tables(record), stability_table(record.stability), footprint_table(record), steps_table(record)]
    return [table for table in tables if table is not None and table.rows]


def _section(title: str, table: Table) -> str:
    return f"## {title}\n\n{to_markdown(table)}".rstrip()
