"""Layer latencies: measured once from probe bodies, kept, and found again; another engine or recipe tail has another table."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import RecipeError
from optbench.measure.subject import Subject
from optbench.model.body import Body
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.run import layer_latencies
from optbench.run.cache import Cache
from optbench.run.layer_latencies import measure_layer_latencies
from optbench.run.listener import Silent
from optbench.run.plan import Item, Options, Run, Stage, finishing_steps
from optbench.steps.quantize_static import QuantizeStatic

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(RECIPES / "gte-large-small.yaml")


def ms(body: Body, length: int) -> float:
    return 1.0 + sum(0.2 + 0.001 * length * heads + 0.00001 * length * width for heads, width in body.sizes)


def test_table_is_measured_once_and_found_again(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Body] = []

    def make(run: Run, body: Body, *_: Any) -> Stage:
        made.append(body)
        return Stage(Item("probe", None, None), Artifact(Kind.OPENVINO, tmp_path, f"{len(made)}"))

    def measure(subjects: Sequence[Subject], lengths: Sequence[int], **_: Any) -> list[Any]:
        assert [subject.artifact.sha256 for subject in subjects] == [str(number + 1) for number in range(len(made))]
        return [SimpleNamespace(median_ms=lambda n, body=body: ms(body, n)) for body in made]

    monkeypatch.setattr(layer_latencies, "_make_probe", make)
    monkeypatch.setattr(layer_latencies, "measure_latency", measure)
    run = Run(recipe, Options(cache=Cache(tmp_path)))
    assert run.find_layer_times() is None
    times = measure_layer_latencies(run, Silent())
    body = recipe.base.body
    assert times.lengths == recipe.workload.lengths
    assert times.body_ms(body.sizes, 64) == pytest.approx(ms(body, 64))
    monkeypatch.setattr(layer_latencies, "_make_probe", None)
    assert measure_layer_latencies(run, Silent()) == times
    run.layer_times_path.write_text("{}")
    assert run.find_layer_times() is None


def test_another_finish_has_another_table(tmp_path: Path, recipe: Recipe) -> None:
    options = Options(cache=Cache(tmp_path))
    assert [step.step for step in finishing_steps(recipe)] == ["export_onnx", "convert_openvino", "quantize_static"]
    other = recipe.model_copy(update={"steps": (*recipe.steps[:-1], QuantizeStatic(smooth_quant_alpha=None))})
    deeper = recipe.model_copy(update={"steps": recipe.steps[1:]})
    assert Run(other, options).layer_times_path != Run(recipe, options).layer_times_path
    assert Run(deeper, options).layer_times_path == Run(recipe, options).layer_times_path


def test_run_that_only_plans_measures_nothing(tmp_path: Path, recipe: Recipe) -> None:
    run = Run(recipe, Options(cache=Cache(tmp_path)))
    with pytest.raises(RecipeError, match="measured by apply"):
        run.measure_layers(run)
