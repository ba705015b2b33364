"""layer_times: a table is measured once from probe bodies, kept, and found again; another engine or recipe tail has another."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optbench.artifact.folder import Artifact, Kind
from optbench.measure.latency import Cell
from optbench.model.checkpoint import Body
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run import layer_times
from optbench.run.apply import Silent
from optbench.run.layer_times import obtain_layer_times
from optbench.run.make import Made, Stage
from optbench.run.plan import Cache, finishing_steps, layer_times_path, read_layer_times
from optbench.steps import QuantizeStatic

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPES / "gte-large-small.yaml")


def ms(body: Body, length: int) -> float:
    return 1.0 + sum(0.2 + 0.001 * length * heads + 0.00001 * length * width for heads, width in body.sizes)


def test_table_is_measured_once_and_found_again(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Body] = []

    def make(recipe: Recipe, body: Body, *_: Any) -> Stage:
        made.append(body)
        return Stage("probe", None, Artifact(Kind.OPENVINO, tmp_path, f"{len(made)}"), Made(), cached=False)

    def measure(cells: Sequence[Cell], lengths: Sequence[int], **_: Any) -> list[Any]:
        assert [cell.sha256 for cell in cells] == [str(number + 1) for number in range(len(made))]
        return [SimpleNamespace(median_ms=lambda n, body=body: ms(body, n)) for body in made]

    monkeypatch.setattr(layer_times, "_make_probe", make)
    monkeypatch.setattr(layer_times, "measure_latency", measure)
    cache = Cache(tmp_path)
    assert read_layer_times(recipe, cache) is None
    times = obtain_layer_times(recipe, cache, Silent(), [])
    body = recipe.base.body
    assert times.lengths == recipe.workload.lengths
    assert times.body_ms(body.sizes, 64) == pytest.approx(ms(body, 64))
    monkeypatch.setattr(layer_times, "_make_probe", None)
    assert obtain_layer_times(recipe, cache, Silent(), []) == times
    layer_times_path(recipe, cache).write_text("{}")
    assert read_layer_times(recipe, cache) is None


def test_another_finish_has_another_table(tmp_path: Path, recipe: Recipe) -> None:
    cache = Cache(tmp_path)
    assert [step.step for step in finishing_steps(recipe)] == ["export_onnx", "convert_openvino", "quantize_static"]
    other = recipe.model_copy(update={"steps": (*recipe.steps[:-1], QuantizeStatic(smooth_quant_alpha=None))})
    deeper = recipe.model_copy(update={"steps": recipe.steps[1:]})
    assert layer_times_path(other, cache) != layer_times_path(recipe, cache)
    assert layer_times_path(deeper, cache) == layer_times_path(recipe, cache)
