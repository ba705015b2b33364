"""Stability of embeddings across batches, padding, threads and instruction sets, for every engine and precision.

    python bench/stability_table.py recipes/minilm-l6.yaml

For each: the worst cosine to the text run alone, by kind of change, and the number of texts with another top 10. Texts,
documents and calibration are those of the recipe's first task. The first run takes some minutes: it makes and caches each variant.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import platformdirs

import optbench  # noqa: F401  # first: it keeps openvino's telemetry from loading
from optbench.engines import Engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.machine.cpu import read_machine
from optbench.machine.progress import silent
from optbench.measure.stability import Stability
from optbench.measure.subject import Subject
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import ConditionKind
from optbench.report.table import Table, to_markdown
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.measure import TaskTexts, measure_text_stability
from optbench.run.plan import Options, Run
from optbench.steps import Step
from optbench.steps.compress_weights import CompressWeights
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.quantize_dynamic import QuantizeDynamic
from optbench.steps.quantize_static import QuantizeStatic
from optbench.steps.quantize_static_qdq import QuantizeStaticQdq

CHANGES: tuple[ConditionKind, ...] = ("order", "padding", "batch", "threads", "isa")
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


def row_of(name: str, stability: Stability) -> list[str]:
    """Worst cosine by kind of change, and the largest number of texts with another top 10, instruction sets aside."""
    cells = []
    for change in CHANGES:
        worst = stability.worst(change)
        cells.append("" if worst is None or worst.fidelity is None else f"{worst.fidelity.minimum:.6f}")
    moved = [row.top.other_documents for row in stability.rows if row.top is not None and row.changes != "isa"]
    return [name, *cells, f"{max(moved, default=0)} of {stability.n_texts}"]


def main() -> None:
    """Make the variants, measure them and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--isa", default="avx2", help="the smaller instruction set to compare with")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    cache = Cache(arguments.cache.absolute())
    texts = TaskTexts.sample([recipe.tasks[0].load()], 2 * arguments.texts)
    rows: list[list[str]] = []
    explained: dict[str, list[str]] = {}
    for name, steps, engine in variants():
        variant = recipe.model_copy(update={"steps": tuple(steps)})
        artifact = make_stages(Run(variant, Options(cache=cache)), Silent())[-1].artifact
        stability = measure_text_stability(Subject(artifact, engine), texts, cache, [arguments.isa], silent)
        rows.append(row_of(name, stability))
        explained |= {text: [*explained.get(text, []), name] for text in stability.explanations}
    columns = ["engine and precision", *CHANGES[:-1], f"as {arguments.isa}", "other top 10"]
    print(to_markdown(Table("", columns, rows, f"{recipe.name}: worst cosine of {arguments.texts} texts; empty: the engine cannot.")))
    for text, names in explained.items():
        print(f"- {', '.join(names)}: {text}.")


if __name__ == "__main__":
    main()
