"""Do embeddings stay the same when only what surrounds a text changes? Every engine and precision on one recipe's base.

    python bench/stability_table.py recipes/minilm-l6.yaml

For each: the worst cosine of any text to itself alone, by what changed, and how many texts then find another top 10. Texts,
documents and calibration are those of the recipe's first task. Takes some minutes the first time: each variant is made and cached.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import platformdirs

import optbench  # noqa: F401  # first: it keeps openvino's telemetry from loading
from optbench.artifact.folder import Artifact
from optbench.encoder import load
from optbench.engines import Engine, OnnxRuntime, OpenVino, Torch
from optbench.machine.cpu import read_machine
from optbench.measure.stability import Changes, Stability, measure_stability
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.report.table import Table, to_markdown
from optbench.run.apply import Silent
from optbench.run.make import calibration_texts, make_base, make_stage
from optbench.run.measure import sample_texts
from optbench.run.plan import Cache
from optbench.steps import CompressWeights, ConvertOpenvino, ExportOnnx, QuantizeDynamic, QuantizeStatic, QuantizeStaticQdq, Step

CHANGES: tuple[Changes, ...] = ("order", "padding", "batch", "threads", "isa")
TO_ONNX: tuple[Step, ...] = (ExportOnnx(),)
TO_OPENVINO: tuple[Step, ...] = (ExportOnnx(), ConvertOpenvino())


def variants() -> list[tuple[str, Sequence[Step], Engine]]:
    """Each engine and precision: its name, the steps that make it, the engine that runs it."""
    found: list[tuple[str, Sequence[Step], Engine]] = [
        ("torch fp32", (), Torch()),
        ("onnxruntime fp32", TO_ONNX, OnnxRuntime()),
        ("onnxruntime dynamic int8", (*TO_ONNX, QuantizeDynamic()), OnnxRuntime()),
        ("onnxruntime static int8", (*TO_ONNX, QuantizeStaticQdq()), OnnxRuntime()),
        ("openvino fp32", TO_OPENVINO, OpenVino()),
        ("openvino static int8", (*TO_OPENVINO, QuantizeStatic()), OpenVino()),
        ("openvino int8 weights, dynamic", (*TO_OPENVINO, CompressWeights(weights="int8_sym")), OpenVino()),
        ("openvino int4 weights, dynamic", (*TO_OPENVINO, CompressWeights(weights="int4_sym", group_size=64, method="gptq")), OpenVino()),
    ]
    if read_machine().has_bf16:
        found.append(("torch bf16", (), Torch(inference_precision="bf16")))
        found.append(("openvino bf16", TO_OPENVINO, OpenVino(inference_precision="bf16")))
    return found


def make_variant(recipe: Recipe, base: Artifact, steps: Sequence[Step], cache: Cache) -> Artifact:
    """The last step's artifact, from the cache where it is there."""
    artifact, calibration = base, calibration_texts(recipe)
    for index, step in enumerate(steps):
        stage = make_stage(step, f"{index} {step.step}", artifact, recipe, cache, Silent(), calibration=calibration, force=False)
        artifact = stage.artifact
    return artifact


def row_of(name: str, stability: Stability) -> list[str]:
    """Worst cosine by change, and the most texts that any condition but the instruction set sends to another top 10."""
    cells = []
    for change in CHANGES:
        worst = stability.worst(change)
        cells.append("" if worst is None or worst.fidelity is None else f"{worst.fidelity.minimum:.6f}")
    moved = [row.top.other_documents for row in stability.rows if row.top is not None and row.changes != "isa"]
    return [name, *cells, f"{max(moved, default=0)} of {stability.n_texts}"]


def main() -> None:
    """Parse, make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--isa", default="avx2", help="the smaller instruction set to compare with")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    cache = Cache(arguments.cache.absolute())
    base = make_base(recipe, cache, "real", None, Silent()).artifact
    queries, documents = sample_texts([recipe.tasks[0].load()], 2 * arguments.texts)
    rows: list[list[str]] = []
    explained: dict[str, list[str]] = {}
    for name, steps, engine in variants():
        artifact = make_variant(recipe, base, steps, cache)
        with load(artifact.path, engine) as encoder:
            vectors = encoder.encode(documents, prompt="document")
        stability = measure_stability(artifact, engine, queries, documents=vectors, isas=(arguments.isa,))
        rows.append(row_of(name, stability))
        explained |= {text: [*explained.get(text, []), name] for text in stability.explanations}
    columns = ["engine and precision", *CHANGES[:-1], f"as {arguments.isa}", "other top 10"]
    print(to_markdown(Table("", columns, rows, f"{recipe.name}: worst cosine of {arguments.texts} texts; empty: the engine cannot.")))
    for text, names in explained.items():
        print(f"- {', '.join(names)}: {text}.")


if __name__ == "__main__":
    main()
