"""finetune: nearer to what answers, further from what does not, and never trained on what is tested."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.engines.torch import Torch
from optbench.errors import StepError, TaskError
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps.base import EvaluationTexts, RecipeFiles, ResumeFolder, StepContext
from optbench.steps.finetune import Finetune
from optbench.steps.training.fake_quantization import fake_quantized
from optbench.steps.training.pairs import Pairs, check_no_test_query, read_pairs
from optbench.tasks import JudgedTexts, judged_texts
from optbench.tasks.beir import Beir
from tests.conftest import WORDS

OPTIONS: dict[str, Any] = {"learning_rate": 1e-3, "batch": 16, "negatives": 2, "evaluations": 3, "precision": "fp32", "temperature": 0.1}


def write_shop(folder: Path, queries: dict[str, list[str]], splits: dict[str, list[tuple[str, str, int]]], documents: list[str]) -> Path:
    """A BEIR folder; queries and documents are their own ids."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": text, "title": text}) + "\n" for text in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": text, "text": text}) + "\n" for text in queries))
    for split, rows in splits.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t{grade}" for query, document, grade in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def overlapping(count: int) -> list[tuple[str, str]]:
    """Pairs that share two words, the other way round, among four others: what a random model hardly sees, and labels teach."""
    generator = random.Random(0)  # noqa: S311  # a draw, not a secret
    found: dict[str, str] = {}
    while len(found) < count:
        words = generator.sample(WORDS, 2)
        found.setdefault(" ".join(words), " ".join([*words[::-1], *generator.sample(WORDS, 4)]))
    return list(found.items())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = overlapping(160)
    rows = [(query, document, 1) for query, document in pairs]
    queries = {query: [document] for query, document in pairs}
    folder = tmp_path_factory.mktemp("data") / "shop"
    return write_shop(folder, queries, {"train": rows[:120], "test": rows[120:]}, [document for _, document in pairs])


def reciprocal_rank(folder: Path) -> float:
    """The mean over the test's queries of 1 / the rank of the answer among all documents."""
    pairs = overlapping(160)
    artifact = Artifact(Kind.CHECKPOINT, folder, "", "random")
    session, tokenizer = Torch(engine="torch").open(artifact), load_tokenizer(folder)
    queries, documents = (session.embed(*encode_batch(tokenizer, [pair[side] for pair in pairs])) for side in (0, 1))
    session.close()
    scores = queries @ documents.T
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(1)
    return float((1 / ranks[120:]).mean())


def test_queries_that_were_not_seen_are_answered_better(
    make_checkpoint: Callable[..., Artifact], make_context: Callable[..., StepContext], shop: Path, tmp_path: Path, no_trace: Path
) -> None:
    source, out = make_checkpoint(prompt="running "), tmp_path / "out"
    out.mkdir()
    step = Finetune(data=(Path("shop"),), epochs=6, hard_epochs=2, **OPTIONS)
    context = make_context(values={RecipeFiles: shop.parent, EvaluationTexts: judged_texts([Beir(path=shop)])})
    report = step.run(source, out, context)
    facts: dict[str, Any] = dict(report.facts)
    assert facts["trained_pairs"] == {"0 shop": 108}
    assert facts["held_out_pairs"] == 12
    assert 108 <= facts["triples"]["0 shop"] <= 2 * 108
    assert facts["pairs"]["steps"] > 0
    assert facts["hard"]["steps"] > 0
    assert reciprocal_rank(out) > reciprocal_rank(source.path)
    open_artifact(source.path)
    assert list(no_trace.iterdir()) == []


def test_run_that_was_killed_in_its_second_stage_ends_as_the_unbroken_one(
    make_checkpoint: Callable[..., Artifact], make_context: Callable[..., StepContext], shop: Path, tmp_path: Path
) -> None:
    step = Finetune(data=(Path("shop"),), epochs=3, hard_epochs=8, quantization_aware=True, **OPTIONS)
    context = make_context(values={RecipeFiles: shop.parent, EvaluationTexts: JudgedTexts()})
    outs = [tmp_path / name for name in ("whole", "killed", "again", "unfinished", "scratch2")]
    for folder in outs:
        folder.mkdir()
    whole, killed, again, unfinished, scratch = outs
    report = step.run(make_checkpoint(), whole, replace(context, scratch=scratch))
    context = replace(context, values={**context.values, ResumeFolder: unfinished})
    assert report.facts["fake_quantized_layers"] == 12  # of two layers: query, key, value, two outputs, one intermediate
    stages: list[str] = []

    def kill(message: str, share: float | None) -> None:
        if message.startswith("step 1 "):
            stages.append(message)
        if len(stages) == 2 and share is not None and share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step.run(make_checkpoint(), killed, replace(context, progress=kill))
    assert list(killed.iterdir()) == []
    resumed: Any = step.run(make_checkpoint(), again, context).facts
    assert resumed["hard"]["resumed_from"] > 0
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_rounding_in_the_forward_pass_is_int8_and_leaves_no_trace(make_checkpoint: Callable[..., Artifact]) -> None:
    import torch

    from optbench.model.torch_model import load_torch_model

    body = load_torch_model(make_checkpoint().path)
    ids = torch.arange(4, 14)[None]
    before, names = body(ids).last_hidden_state, {name for name, _ in body.named_parameters()}
    layer = body.encoder.layer[0].intermediate.dense
    with fake_quantized(body) as count:
        rounded = layer.weight.detach()
        levels = (rounded / (rounded.abs().amax(1, keepdim=True) / 127)).round(decimals=3)
        inside = body(ids).last_hidden_state
        inside.square().sum().backward()
        gradient = layer.parametrizations.weight.original.grad
    assert count == 12
    assert torch.equal(levels, levels.round())
    assert gradient.abs().min() >= 0
    assert gradient.abs().sum() > 0
    assert 0 < (inside - before).abs().max() < 0.5 * before.abs().max()
    assert torch.equal(body(ids).last_hidden_state, before)
    assert {name for name, _ in body.named_parameters()} == names


def test_grades_decide_what_answers_and_what_does_not(tmp_path: Path) -> None:
    rows = [("a", "d1", 3), ("a", "d2", 1), ("a", "d3", 0), ("b", "d4", 2)]
    shop = write_shop(tmp_path / "s", {"a": [], "b": []}, {"train": rows}, ["d1", "d2", "d3", "d4", "d5"])
    pairs = read_pairs(shop, "train", 2)
    assert list(pairs.rows) == [("a", "d1"), ("b", "d4")]
    assert pairs.negatives == {"a": ["d3"], "b": []}
    assert list(pairs.documents) == ["d1", "d2", "d3", "d4", "d5"]


def test_triples_are_read_in_both_spellings(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write('{"anchor": "a", "positive": "p", "negative": ["n", "m"]}\n\n{"query": "b", "positive": "q", "negative": "n"}\n')
    pairs = read_pairs(tmp_path / "t.jsonl.gz", "train", 1)
    assert list(pairs.rows) == [("a", "p"), ("b", "q")]
    assert pairs.negatives == {"a": ["n", "m"], "b": ["n"]}
    assert list(pairs.documents) == ["p", "q", "n", "m"]


def test_split_keeps_all_positives_of_a_query_on_one_side() -> None:
    pairs = Pairs("x", [(f"q{query}", f"d{query}{n}") for query in range(20) for n in range(3)], {}, [])
    train, held_out = pairs.split(0.1, 0)
    assert len(held_out.rows) == 6
    assert {row[0] for row in held_out.rows}.isdisjoint(row[0] for row in train.rows)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "has no positive"),
        ('{"anchor": "a", "negative": "n"}\n', "has no positive, so there is nothing to learn"),
        ('{"anchor": "a", "positive": "p"}\n', "has only one query"),
        ('{"positive": "p"}\n', r"t\.jsonl:1: found .*\"anchor\""),
        ('{"anchor": "a", "positive": "p", "negative": 3}\n', r"t\.jsonl:1: found"),
        ("{\n", r"t\.jsonl:2: cannot be read|t\.jsonl:1"),
    ],
)
def test_data_set_that_teaches_nothing_is_refused(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text(lines)
    with pytest.raises((StepError, TaskError), match=said):
        read_pairs(tmp_path / "t.jsonl", "train", 1)


def test_training_on_a_test_query_is_refused(
    make_checkpoint: Callable[..., Artifact], make_context: Callable[..., StepContext], shop: Path, tmp_path: Path
) -> None:
    step = Finetune(data=(Path("shop"),), split="test", **OPTIONS)
    context = make_context(values={RecipeFiles: shop.parent, EvaluationTexts: judged_texts([Beir(path=shop)])})
    with pytest.raises(StepError, match=r"shop: trains on .*, a query of the test of beir:shop.*split the data by query"):
        step.run(make_checkpoint(), tmp_path, context)


def test_documents_of_one_corpus_may_serve_training_and_test() -> None:
    judged = JudgedTexts(queries={"shoes": "t"}, documents={"red shoe": "t"})
    check_no_test_query(Pairs("x", [("boots", "red shoe")], {}, []), judged)
    with pytest.raises(StepError, match="'Shoes', a query of the test of t"):
        check_no_test_query(Pairs("x", [("boots", "Shoes")], {}, []), judged)


def test_step_without_a_stage_is_refused(
    make_checkpoint: Callable[..., Artifact], make_context: Callable[..., StepContext], tmp_path: Path
) -> None:
    with pytest.raises(StepError, match="epochs and hard_epochs are both 0"):
        Finetune(data=(Path("x"),), epochs=0, hard_epochs=0).run(make_checkpoint(), tmp_path, make_context())
