"""Calibration texts: from the recipe's own sources, and never from a test."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from optbench.errors import StepError, TaskError
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Calibration, Recipe
from optbench.run.cache import Cache
from optbench.run.calibration import draw_calibration, sample_texts
from optbench.run.inputs import check_inputs
from optbench.run.plan import Options, Run, make_plan
from optbench.steps.finetune import Finetune
from optbench.steps.prune_structured import PruneStructured
from optbench.steps.trim_vocabulary import TrimVocabulary
from optbench.tasks import JudgedTexts, judged_texts
from optbench.tasks.beir import Beir
from optbench.tasks.retail import Retail
from optbench.tasks.sts import Sts

RECIPES = Path(__file__).parents[2] / "recipes"


def write_folder(folder: Path, documents: dict[str, str], judged: dict[str, int]) -> Path:
    """A BEIR folder of one query, `which one`, with these judgments."""
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "title": "", "text": text} for name, text in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which one"}\n')
    (folder / "qrels" / "test.tsv").write_text("".join(f"q\t{name}\t{grade}\n" for name, grade in judged.items()))
    return folder


def recipe_with(folder: Path, calibration: dict[str, Any], **changes: Any) -> Recipe:
    """minilm-l6 with this calibration, its file in `folder`."""
    changes["calibration"] = Calibration(**calibration)
    return load_recipe(RECIPES / "minilm-l6.yaml").model_copy(update=changes).placed_in(folder)


def test_default_is_what_the_tasks_leave_unjudged() -> None:
    recipe = load_recipe(RECIPES / "minilm-l6.yaml")
    drawn, spare = draw_calibration(recipe, judged_texts(recipe.tasks)), Retail().calibration_texts(128)
    assert drawn.texts == (*spare.queries[:64], *spare.documents[:64])
    assert (drawn.note, drawn.warning) == (f"64 queries and 64 documents, out of {spare.note}", "")


def test_folder_in_which_every_document_is_judged_falls_back_to_general_texts_with_a_warning(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shop", {"d1": "oak desk", "d2": "lamp"}, {"d1": 1, "d2": 0})
    recipe = recipe_with(tmp_path, {"texts": 40, "languages": ("fr",)}, tasks=(Beir(path=folder),))
    drawn = draw_calibration(recipe, judged_texts(recipe.tasks))
    assert len(drawn.texts) == 40
    assert not set(drawn.texts) & {"oak desk", "lamp"}
    assert "every document of beir:shop is judged: general texts (fr) take the place of 40 of 40 texts" in drawn.warning
    plan = make_plan(Run(recipe, Options(cache=Cache(tmp_path / "cache"))))
    assert plan.calibration == "every document of beir:shop is judged; 40 general texts (fr)"
    assert plan.tasks[0].startswith("beir:shop: 1 queries, 2 documents")


def test_every_task_that_leaves_texts_gets_an_equal_share(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shop", {f"d{number}": f"oak desk {number}" for number in range(90)}, {"d0": 1})
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,1\nc,d,2\n")
    recipe = recipe_with(tmp_path, {"texts": 80}, tasks=(Retail(), Beir(path=folder), Sts(path=pairs)))
    texts = draw_calibration(recipe, judged_texts(recipe.tasks)).texts
    assert len(texts) == 80
    assert sum(text.startswith("oak") for text in texts) == 40


def test_files_replace_the_tasks_and_their_tests_stay_out(tmp_path: Path) -> None:
    (tmp_path / "titles.txt").write_text("".join(f"title {number}\n" for number in range(50)))
    write_folder(tmp_path / "shop", {f"d{number}": f"oak desk {number}" for number in range(50)}, dict.fromkeys(("d1", "d2"), 1))
    recipe = recipe_with(tmp_path, {"texts": 80, "files": (Path("titles.txt"), Path("shop"))})
    texts = draw_calibration(recipe, JudgedTexts(documents={"title 7": "another"})).texts
    assert sum(text.startswith("title") for text in texts) == sum(text.startswith("oak") for text in texts) == 40
    everything = recipe_with(tmp_path, {"texts": 98, "files": (Path("titles.txt"), Path("shop"))})
    assert not set(draw_calibration(everything, JudgedTexts(documents={"title 7": "another"})).texts) & {
        *("title 7", "oak desk 1", "oak desk 2")
    }


def test_texts_that_another_task_of_the_run_judges_never_calibrate(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "minilm-l6.yaml")
    taken = Retail().calibration_texts(128).documents[0]
    folder = write_folder(tmp_path / "shop", {"d1": taken.upper(), "d2": "lamp"}, {"d1": 1})
    alone = Run(recipe, Options(cache=Cache(tmp_path / "cache"))).calibration_texts
    beside = Run(recipe, Options(cache=Cache(tmp_path / "cache"), tasks=(Beir(path=folder),))).calibration_texts
    assert set(alone) - set(beside) == {taken}


def test_file_whose_texts_are_all_judged_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "shop", {"d1": "oak desk"}, {"d1": 1})
    recipe = recipe_with(tmp_path, {"files": (Path("shop"),)})
    with pytest.raises(TaskError, match=r"shop: holds no text outside the tests, .*remove it from calibration\.files"):
        draw_calibration(recipe, JudgedTexts())


def test_sample_is_distinct_and_independent_of_order_and_of_what_is_left_out() -> None:
    texts = [f"text {number}" for number in range(200)]
    drawn = sample_texts([*texts, *texts], 20, 0)
    assert len(set(drawn)) == 20
    assert drawn == sample_texts(reversed(texts), 20, 0) != sample_texts(texts, 20, 1)
    without = sample_texts([text for text in texts if text != drawn[3]], 20, 0)
    assert without[:19] == [text for text in drawn if text != drawn[3]]
    assert sample_texts(texts[:5], 20, 0) == sample_texts(texts[:5], 5, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": 0}, "texts and general come to 0; give at least 8 together"),
        ({"general": 8, "languages": ("xx",)}, "there are no general texts in xx; use files, or some of en, ar"),
    ],
)
def test_calibration_without_texts_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Calibration(**options)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (TrimVocabulary(corpus=(Path("bad.jsonl"),)), r"bad\.jsonl:2: not JSON"),
        (PruneStructured(keep_flops=0.5, texts=(Path("bad.jsonl"),)), r"bad\.jsonl:2: not JSON"),
        (Finetune(data=(Path("gone"),)), r"gone: no such file"),
        (Finetune(data=(Path("triples.jsonl"),)), r"0 finetune: .*triples\.jsonl: has only one query"),
    ],
    ids=["trim_vocabulary", "prune_structured", "finetune gone", "finetune"],
)
def test_plan_reads_the_texts_of_steps(step: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "triples.jsonl").write_text('{"anchor": "desk", "positive": "oak desk"}\n')
    recipe = recipe_with(tmp_path, {}, steps=(step,))
    with pytest.raises((TaskError, StepError), match=message):
        check_inputs(Run(recipe, Options(cache=Cache(tmp_path / "cache"))))
