"""Texts to train on: their files, and what is refused before anything is trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.model.checkpoint import Prompts
from optbench.steps.training.texts import check_known, check_not_judged, excerpts, read_texts, text_files
from optbench.tasks import JudgedTexts, judged_texts
from optbench.tasks.beir import Beir
from optbench.tasks.sts import Sts

PROMPTS = Prompts(query="query: ", document="passage: ")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A BEIR folder: one query asked and one spare, one document judged and two that are not."""
    folder = tmp_path / "shop"
    (folder / "qrels").mkdir(parents=True)
    documents = {"d1": "red shoe", "d2": "oak desk", "d3": "blue lamp"}
    queries = {"q1": "shoes", "q2": "desks"}
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": k, "title": v, "text": ""}) + "\n" for k, v in documents.items()))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": k, "text": v}) + "\n" for k, v in queries.items()))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


def test_file_gives_distinct_texts_and_both_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"text {number}\n" for number in (*range(100), *range(100))), encoding="utf-8")
    texts = read_texts(tmp_path / "a.txt", PROMPTS, 1000, 0)
    assert sorted(text.partition(": ")[2] for text in texts) == sorted(f"text {number}" for number in range(100))
    assert 25 < sum(text.startswith("query: ") for text in texts) < 75
    assert list(text_files(tmp_path / "a.txt")) == ["a.txt"]


def test_draw_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"text {number}" for number in range(100)))
    drawn = [read_texts(tmp_path / "a.txt", PROMPTS, 10, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10


def test_folder_gives_only_what_its_test_leaves(shop: Path) -> None:
    texts = read_texts(shop, PROMPTS, 10, 0)
    assert sorted(texts) == ["passage: blue lamp", "passage: oak desk", "query: desks"]
    check_not_judged(texts, PROMPTS, judged_texts([Beir.from_folder(shop)]))
    assert sorted(text_files(shop)) == ["corpus.jsonl", "qrels/test.tsv", "queries.jsonl"]


def test_file_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n  \n")
    with pytest.raises(StepError, match=r"a\.txt: holds no text"):
        read_texts(tmp_path / "a.txt", PROMPTS, 10, 0)


def test_excerpts_are_runs_of_words_that_no_test_asks() -> None:
    texts = [f"passage: Red shoe for model {number} in blue" for number in range(200)]
    found = excerpts(texts, PROMPTS, 1.0, JudgedTexts(queries={"red shoe": "retail"}), 0)
    assert 50 < len(found) == len(set(found)) < 200
    assert {len(excerpt.removeprefix("query: ").split()) for excerpt in found} == {1, 2, 3, 4}
    known = " | ".join(texts)
    assert all(excerpt.startswith("query: ") and excerpt.removeprefix("query: ") in known for excerpt in found)
    assert "query: Red shoe" not in found
    assert "query: Red shoe" in excerpts(texts, PROMPTS, 1.0, JudgedTexts(), 0)


def test_excerpts_are_as_many_as_asked_for_and_the_same_for_the_same_seed() -> None:
    texts = [f"a{number} b{number} c{number} d{number} e{number}" for number in range(100)]
    drawn = [excerpts(texts, Prompts(query="", document=""), 0.3, JudgedTexts(), seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 30
    assert excerpts(texts, PROMPTS, 0.0, JudgedTexts(), 0) == excerpts([], PROMPTS, 1.0, JudgedTexts(), 0) == []
    # Of one word there is nothing to leave out.
    assert excerpts(["lamp"], Prompts(query="", document=""), 1.0, JudgedTexts(), 0) == []


@pytest.mark.parametrize("text", ["query:   Shoes", "passage: red  shoe", "RED shoe"])
def test_judged_text_is_refused_whatever_its_case_spaces_and_prompt(shop: Path, text: str) -> None:
    with pytest.raises(StepError, match=r"is in the test of beir:shop.*remove it"):
        check_not_judged(["oak desk", text], PROMPTS, judged_texts([Beir.from_folder(shop)]))


def test_both_sentences_of_a_judged_pair_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs-en.csv").write_text("a cat,a dog,3\na car,a bike,1\n")
    judged = judged_texts([Sts(path=tmp_path / "pairs-en.csv")])
    assert (judged.find("A bike"), judged.find_query("a car"), judged.find("a boat")) == ("sts:pairs-en", "sts:pairs-en", None)


def test_hash_of_judged_texts_is_that_of_the_texts() -> None:
    one, same = JudgedTexts({"a": "x"}, {"b": "x"}), JudgedTexts({"a": "y"}, {"b": "z"})
    assert one.sha256 == same.sha256 != JudgedTexts({"b": "x"}, {"a": "x"}).sha256


def test_texts_in_an_unknown_script_are_refused(make_checkpoint: Callable[..., Artifact]) -> None:
    folder = make_checkpoint().path
    assert check_known(folder, ["red shoe", "oak desk small lamp unheard"]) == pytest.approx(1 / 7)
    with pytest.raises(StepError, match=r"75 % of the tokens.*language that this model cannot read.*First: 'รองเท้า"):
        check_known(folder, ["รองเท้า แดง", "โต๊ะ shoe"])
