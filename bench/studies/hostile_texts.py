"""What do hostile texts do to int8? Static with and without them among the calibration texts, and dynamic activations.

    python bench/studies/hostile_texts.py recipes/minilm-l6.yaml --task path/to/semipqa --task path/to/chorus

For each variant: cosine to the recipe's fp32 graph over 300 hostile texts (mean and worst, worst of the kinds that calibration has and
of those that it has not) and over the tasks' own texts, and each task's change with its paired 95 % interval. A variant is the recipe
with other last steps. OpenVINO quantizes activations at run time only on a CPU with VNNI: elsewhere `compress_weights` is weights alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from optbench.measure.accuracy import AccuracyResult, accuracy_change
from optbench.measure.encoding import TextEncoder
from optbench.measure.fidelity import cosines
from optbench.measure.hostile import HostileFidelity
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run.cache import Cache
from optbench.run.evaluate import stage_subject
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.measure import TaskTexts, measure_task_accuracy
from optbench.run.plan import Options, Run
from optbench.steps import Step
from optbench.steps.compress_weights import CompressWeights
from optbench.steps.quantize_dynamic import QuantizeDynamic
from optbench.steps.quantize_static import QuantizeStatic
from optbench.steps.quantize_static_qdq import QuantizeStaticQdq
from optbench.tasks import load_tasks, parse_task
from optbench.tasks.hostile import KINDS, hostile_kinds

HOSTILE_TEXTS = 300


def variants(recipe: Recipe, counts: Sequence[int]) -> dict[str, tuple[Step, ...]]:
    """The recipe's steps up to its fp32 OpenVINO graph, and what may follow."""
    openvino = tuple(step for step in recipe.steps if step.step != "quantize_static")
    onnx = tuple(step for step in openvino if step.step != "convert_openvino")
    static = next((step for step in recipe.steps if isinstance(step, QuantizeStatic)), QuantizeStatic())
    found: dict[str, tuple[Step, ...]] = {"fp32": openvino}
    found |= {f"static, {count} hostile": (*openvino, static.model_copy(update={"hostile_samples": count})) for count in counts}
    found |= {f"static QDQ, {count} hostile": (*onnx, QuantizeStaticQdq(hostile_samples=count)) for count in (0, counts[-1])}
    found["dynamic (ONNX Runtime)"] = (*onnx, QuantizeDynamic())
    found["int8 weights (OpenVINO)"] = (*openvino, CompressWeights(weights="int8_asym"))
    return found


def main() -> None:
    """Make each variant, measure, print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--task", action="append", default=[], help="A task to measure besides the recipe's, as in optbench apply.")
    parser.add_argument("--hostile", default="0,52", help="Numbers of hostile texts to calibrate on, comma-separated.")
    parser.add_argument("--only", default="", help="Variants whose name holds this.")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    arguments = parser.parse_args()
    recipe, options = load_recipe(arguments.recipe), Options(cache=Cache(arguments.cache.absolute()))
    data = load_tasks([*recipe.tasks, *(parse_task(text) for text in arguments.task)])
    texts = TaskTexts.sample(data, recipe.fidelity.texts)
    kinds = list(hostile_kinds("test"))
    seen = np.array([kinds[index % len(kinds)] in KINDS for index in range(HOSTILE_TEXTS)])
    hostile_texts = HostileFidelity(HOSTILE_TEXTS).texts
    reference: tuple[NDArray[np.float32], NDArray[np.float32], tuple[AccuracyResult, ...]] | None = None
    print("variant | hostile mean, worst, worst seen, worst unseen | task texts mean, worst | change of each task in %")
    for label, steps in variants(recipe, [int(count) for count in arguments.hostile.split(",")]).items():
        if reference is not None and arguments.only not in label:
            continue
        run = Run(recipe.model_copy(update={"steps": steps}), options)
        subject = stage_subject(make_stages(run, Silent())[-1], run)
        with TextEncoder(subject, run.cache.embeddings) as encode:
            hostile = encode(hostile_texts, "query")
            real = np.concatenate([encode(texts.queries, "query"), encode(texts.documents, "document")])
        accuracy = measure_task_accuracy(subject, data, run.cache, progress=lambda *_: None)
        if reference is None:
            reference = (hostile, real, accuracy)
        over_hostile, over_real = cosines(reference[0], hostile), cosines(reference[1], real)
        cells = [
            over_hostile.mean(),
            over_hostile.min(),
            over_hostile[seen].min(),
            over_hostile[~seen].min(),
            over_real.mean(),
            over_real.min(),
        ]
        changes = [accuracy_change(base, result) for base, result in zip(reference[2], accuracy, strict=True)]
        shown = [f"{100 * change.point:+.2f} ({100 * change.low:+.2f}..{100 * change.high:+.2f})" for change in changes]
        names = [f"{result.task} {text}" for result, text in zip(accuracy, shown, strict=True)]
        print(f"{label:24} | {' '.join(f'{cell:.4f}' for cell in cells)} | {'; '.join(names)}", flush=True)


if __name__ == "__main__":
    main()
