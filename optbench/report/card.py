"""The README.md of an exported artifact, as a Hugging Face model card."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from optbench.base.license import hub_license
from optbench.record.record import Record
from optbench.record.verdict import Verdict
from optbench.report.contents import command_of, record_tables
from optbench.report.decimals import fixed
from optbench.report.headline import headline_of, title_of
from optbench.report.loaders import snippets_of
from optbench.report.table import Table, to_markdown, verdict_table
from optbench.report.text import inline, printable

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["card_metadata", "render_card"]

# The hub's metric names, and the task of each.
METRICS = {"nDCG@10": ("ndcg_at_10", "retrieval"), "Spearman": ("cosine_spearman", "sentence-similarity")}
# The hub's language codes; a task of unknown language has `und`.
LANGUAGE = re.compile(r"[a-z]{2,3}")


def card_metadata(record: Record) -> "ModelCardData":
    """The card's front matter; huggingface_hub's class escapes the record's text."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe = record.recipe
    real = record.weights == "real"
    options: dict[str, Any] = {**hub_license(recipe.base.license)}
    source = recipe.base.source if record.base == "random" else record.base
    kind, _, location = source.partition(":")
    if kind == "hub":
        options |= {"base_model": location.partition("@")[0], "base_model_relation": "quantized"}
    results = []
    for result in record.final.accuracy if real else ():
        metric, task = METRICS.get(result.main_metric, (result.main_metric, "retrieval"))
        synthetic = " (synthetic, written for optbench)" if result.synthetic else ""
        results.append(
            EvalResult(
                task_type=task,
                dataset_type=result.task,
                dataset_name=result.task + synthetic,
                metric_type=metric,
                metric_name=result.main_metric,
                metric_value=round(result.mean(), 6),
            )
        )
    spoken = {result.language for result in record.final.accuracy} if real else set()
    languages = sorted(language for language in spoken if LANGUAGE.fullmatch(language) and language != "und")
    tags = ["optbench", "sentence-transformers", str(record.final.kind), *(step.step for step in recipe.steps if "export" not in step.step)]
    return ModelCardData(
        model_name=title_of(record),
        language=languages or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*tags, *([] if real else ["random-weights"])],
        eval_results=results or None,
        **options,
    )


def render_card(record: Record, verdict: Verdict) -> str:
    """Render the card: front matter, then markdown."""
    recipe = record.recipe
    parts = [f"---\n{card_metadata(record).to_yaml()}\n---", f"# {inline(title_of(record))}"]
    if record.weights == "random":
        parts.append(
            "> **Random weights.** Latency, memory and the steps are those of a body of this shape. The embeddings are meaningless: "
            "accuracy was not judged, and the cosines below show only that the graph computes the same function."
        )
    parts.append(
        f"{inline(recipe.description) or 'A text-embedding encoder for CPUs.'} Made from `{_code(record.base)}` by optbench "
        f"{record.optbench}: {', '.join(step.step for step in recipe.steps)}. Dimension {recipe.base.description.embedding_dimension}, "
        f"{recipe.base.pooling} pooling{', normalized' if recipe.base.normalize else ''}, compared by {recipe.base.similarity}, at most "
        f"{recipe.base.max_tokens} tokens."
    )
    summary = _summary(record)
    parts += [summary] if summary else []
    if recipe.card is not None:
        parts.append(f"## About this model\n\n{printable(recipe.card).strip()}")
    parts.append(_section("Verdict", verdict_table(verdict)))
    parts += [_section(table.title, table) for table in record_tables(record)]
    parts.append("## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(record)))
    parts.append("## Load it\n\n" + "\n\n".join(_loading(record)))
    parts.append(f"## Make it again\n\n```\npip install optbench=={inline(record.optbench)}\n{printable(command_of(record))}\n```")
    machine = record.machine
    libraries = ", ".join(f"{library} {number}" for library, number in record.libraries.items())
    parts.append(
        f"## Measured on\n\n{inline(machine.cpu)}, {machine.usable_threads} usable threads, {machine.memory_bytes / 2**30:.0f} GiB, "
        f"{machine.isa}{f', limited to {record.isa}' if record.isa else ''}, {inline(machine.system)}; "
        f"{record.created}; {inline(libraries)}."
    )
    parts.append(_attribution(record))
    if record.warnings:
        parts.append("## Warnings\n\n" + "\n".join(f"- {inline(warning)}" for warning in record.warnings))
    return "\n\n".join(parts) + "\n"


def _section(title: str, table: Table) -> str:
    return f"## {inline(title)}\n\n{to_markdown(table)}".rstrip()


def _code(text: str) -> str:
    """Text for a markdown code span."""
    return " ".join(printable(text).replace("`", "'").split())


def _summary(record: Record) -> str:
    found = headline_of(record)
    if found is None:
        return ""
    before, after = fixed([found.fp32_ms.point, found.optimized_ms.point])
    text = (
        f"**{before} ms to {after} ms** at {found.tokens} tokens, {found.speedup.point:.2f} times "
        f"as fast as {found.fp32} ({found.speedup.low:.2f}..{found.speedup.high:.2f}), {found.fp32_bytes / 1e6:.0f} MB to "
        f"{found.optimized_bytes / 1e6:.0f} MB."
    )
    if found.loss is not None:
        change = found.loss.change
        text += (
            f" {found.loss.metric} on {inline(found.loss.task)}: {100 * change.point:+.1f} % "
            f"({100 * change.low:+.1f}..{100 * change.high:+.1f})."
        )
    return text


def _limits(record: Record) -> Iterator[str]:
    """The conditions of the figures, and what was not measured."""
    workload, machine = record.recipe.workload, record.machine
    isa = record.isa or machine.isa
    yield (
        f"The milliseconds hold for {inline(machine.cpu)} on {record.threads} threads, with {isa}. They differ on another CPU, and with "
        "another instruction set another variant may be fastest: without VNNI int8 can be slower than fp32. Measure on yours with the "
        "command below, or emulate a smaller instruction set on this CPU with `--isa`."
    )
    yield (
        f"Measured at batch {workload.batch} and {', '.join(map(str, sorted(workload.lengths)))} tokens, judged at "
        f"{', '.join(map(str, sorted(workload.judged)))}. Longer inputs were not timed; beyond {record.recipe.base.max_tokens} tokens they "
        "are truncated."
    )
    yield from _stability_limits(record)
    for result in record.final.accuracy if record.weights == "real" else ():
        about = " It is synthetic, written for optbench: a smoke test, not a benchmark." if result.synthetic else ""
        yield f"Accuracy on {inline(result.task)} is over {result.n_queries} queries.{about}"
    if record.weights == "random":
        yield "Accuracy is unknown because the weights are random. Run the recipe with the real weights before using it."


def _stability_limits(record: Record) -> Iterator[str]:
    measured = [row for row in record.stability.rows if row.fidelity is not None] if record.stability else []
    if measured:
        worst = min(measured, key=lambda row: row.fidelity.minimum if row.fidelity else 1.0)
        cosine = worst.fidelity.minimum if worst.fidelity else 1.0
        yield f"A text's embedding depends on how it is run: the worst cosine is {cosine:.6f} ({inline(worst.condition)})."
        if worst.explanation:
            yield f"{inline(worst.explanation)}."
    elif any(step.step == "quantize_dynamic" for step in record.recipe.steps):
        yield (
            "Dynamic int8 gives each batch its own activation scale, so an embedding depends on its batch: embed one text "
            "at a time, or in batches of similar length; `optbench stability` measures the difference."
        )
    else:
        yield "Stability across batches, padding and threads was not measured in this run; use `optbench stability FOLDER`."


def _loading(record: Record) -> Iterator[str]:
    yield f"`{record.recipe.name}` is the path of this folder."
    for snippet in snippets_of(record, record.recipe.name):
        yield f"### {snippet.name}\n\n```\npip install {snippet.install}\n```\n\n```python\n{snippet.code}\n```"


def _attribution(record: Record) -> str:
    base = record.recipe.base
    text = f"## License and attribution\n\nThe weights are those of `{_code(record.base)}`, modified by the steps above"
    if record.weights == "random":
        text = f"## License and attribution\n\nThe body is that of `{_code(base.source)}`"
    return (
        f"{text}; all credit for the model is due to its authors. Its license, **{inline(base.license)}**, also applies to this artifact: "
        "keep its notices with every copy. optbench itself is Apache-2.0."
    )
