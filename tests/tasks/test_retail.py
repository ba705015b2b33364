import importlib.util
import json
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

from optbench.tasks.retail import Retail

GENERATOR = Path(__file__).parents[2] / "bench" / "make_retail_task.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_retail_task", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
        return module


def test_generator_rebuilds_the_shipped_file_byte_for_byte(generator: ModuleType) -> None:
    shipped = resources.files("optbench.tasks").joinpath("data/retail.json").read_bytes()
    assert generator.build() == shipped
    assert len(shipped) < 150_000


def test_task_says_that_it_is_synthetic_and_has_the_promised_size() -> None:
    data = Retail().load()
    assert data.synthetic
    assert len(data.queries) >= 400
    assert len(data.documents) >= 600
    assert set(data.gains) == {0, 1, 2, 3}
    assert data.gains[3] == 7


def test_every_query_has_a_product_that_meets_it_and_one_that_does_not() -> None:
    data = Retail().load()
    assert data.rankable("judged") == tuple(data.queries)
    for query, judged in data.relevance.items():
        grades = set(judged.values())
        assert 3 in grades, data.queries[query]
        assert 0 in grades, data.queries[query]


def test_calibration_split_shares_no_text_with_the_test() -> None:
    task = Retail()
    data, spare = task.load(), task.calibration_texts(1000)
    assert len(spare.queries) >= 120
    assert len(spare.documents) >= 250
    tested = {text.lower() for text in [*data.queries.values(), *data.documents.values()]}
    assert not tested & {text.lower() for text in (*spare.queries, *spare.documents)}
    assert "synthetic" in spare.note


def test_calibration_draw_repeats_with_its_seed_only() -> None:
    task = Retail()
    assert task.calibration_texts(20, seed=1) == task.calibration_texts(20, seed=1)
    assert task.calibration_texts(20, seed=1) != task.calibration_texts(20, seed=2)


def test_kinds_of_the_calibration_are_not_kinds_of_the_test(generator: ModuleType) -> None:
    catalog = generator.YAML(typ="safe").load(generator.CATALOG.read_text(encoding="utf-8"))
    tested, spare = ({kind["kind"] for kind in catalog[part]} for part in ("kinds", "calibration"))
    assert tested
    assert spare
    assert not tested & spare
    for kind in catalog["kinds"]:
        values = {value.split("|")[0] for axis in kind["axes"] for value in axis}
        assert set(kind["near"]) <= tested
        for use in kind["uses"]:
            assert set(use.get("wants", ())) <= values, use


def test_grades_follow_the_met_constraints(generator: ModuleType) -> None:
    near = {"mouse": ["keyboard"], "keyboard": [], "lamp": []}
    query = generator.Query("silent usb mouse", "mouse", frozenset({"silent", "USB"}))

    def graded(kind: str, *values: str) -> int:
        grade: int = generator.grade(query, generator.Product(kind, "", "", frozenset(values)), near)
        return grade

    assert [graded("mouse", "silent", "USB"), graded("mouse", "silent"), graded("mouse"), graded("keyboard", "silent", "USB")] == [
        3,
        2,
        1,
        1,
    ]
    assert graded("lamp", "silent", "USB") == 0


def test_shipped_file_is_readable_line_by_line() -> None:
    text = resources.files("optbench.tasks").joinpath("data/retail.json").read_text(encoding="utf-8")
    assert max(len(line) for line in text.splitlines()) < 400
    assert json.loads(text)["about"].startswith("Synthetic")
