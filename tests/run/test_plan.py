"""The plan: cache keys move with anything that may change a step's output, and with nothing else."""

from pathlib import Path

import pytest

from optbench.machine.cpu import read_machine
from optbench.recipe.load import load_recipe
from optbench.run.plan import Cache, make_plan, step_key
from optbench.steps import ConvertOpenvino, ExportOnnx, FuseGraph, QuantizeStatic

RECIPES = Path(__file__).parents[2] / "recipes"
ENGINE = {"engine": "onnxruntime"}


def test_key_moves_with_source_options_and_calibration() -> None:
    machine = read_machine()
    plain = step_key(QuantizeStatic(), "a", machine, ["text"], ENGINE)
    assert step_key(QuantizeStatic(), "a", machine, ["text"], ENGINE) == plain
    assert step_key(QuantizeStatic(), "b", machine, ["text"], ENGINE) != plain
    assert step_key(QuantizeStatic(), "a", machine, ["other"], ENGINE) != plain
    assert step_key(QuantizeStatic(smooth_quant_alpha=0.5), "a", machine, ["text"], ENGINE) != plain


def test_key_ignores_calibration_where_a_step_does_not_calibrate() -> None:
    machine = read_machine()
    assert step_key(ConvertOpenvino(), "a", machine, ["text"], ENGINE) == step_key(ConvertOpenvino(), "a", machine, [], ENGINE)


def test_key_moves_with_the_step_version_and_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = read_machine()
    plain = step_key(ExportOnnx(), "a", machine, [], ENGINE)
    monkeypatch.setattr(ExportOnnx, "version", ExportOnnx.version + 1)
    raised = step_key(ExportOnnx(), "a", machine, [], ENGINE)
    assert raised != plain
    monkeypatch.setattr(ExportOnnx, "libraries", ())
    assert step_key(ExportOnnx(), "a", machine, [], ENGINE) != raised


def test_a_price_belongs_to_the_machine_and_the_engine() -> None:
    machine = read_machine()
    other = machine.model_copy(update={"cpu": "another"})
    step = FuseGraph(fusions=({"name": "bias_gelu"},))
    assert step_key(step, "a", machine, [], ENGINE) != step_key(step, "a", other, [], ENGINE)
    assert step_key(step, "a", machine, [], ENGINE) != step_key(step, "a", machine, [], {"engine": "openvino"})
    assert step_key(ExportOnnx(), "a", machine, [], ENGINE) == step_key(ExportOnnx(), "a", other, [], ENGINE)


def test_nothing_is_cached_in_an_empty_cache_and_disk_is_estimated(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "arctic-l.yaml")
    planned = make_plan(recipe, Cache(tmp_path), read_machine(), weights="random")
    assert planned.base_state == "obtain"
    assert all(step.state == "run" for step in planned.steps)
    weights = 4 * recipe.base.body.parameters
    assert planned.missing_bytes == weights * (1 + len(planned.steps))
    assert list(tmp_path.iterdir()) == []
