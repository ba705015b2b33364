"""Stages are judged one after another: a base without accuracy ends the run, and so does a step that moves the embeddings too far."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import MeasureError, StepError
from optbench.measure.fidelity import measure_fidelity
from optbench.recipe.load import load_recipe
from optbench.run import evaluate
from optbench.run.cache import Cache
from optbench.run.evaluate import StageEvaluator, judged_fidelity
from optbench.run.listener import Silent
from optbench.run.plan import Item, Options, Run, Stage
from optbench.steps import Step
from optbench.steps.distill import Distill
from optbench.steps.quantize_static import QuantizeStatic
from tests.conftest import accuracy_of

RECIPE = Path(__file__).parents[2] / "recipes" / "gte-large.yaml"


@pytest.fixture
def evaluator(tmp_path: Path) -> StageEvaluator:
    return StageEvaluator(Run(load_recipe(RECIPE), Options(cache=Cache(tmp_path))), Silent())


def stage(artifact: Artifact, step: Step | None = None, weights: Any = "real") -> Stage:
    return Stage(Item("base" if step is None else f"0 {step.step}", step, None), replace(artifact, weights=weights))


class FakeEncoder:
    """Gives every text of a stage's artifact the same vectors, turned by `degrees` for an artifact that a step made."""

    degrees = 0.0

    def __init__(self, subject: Any, *_: Any) -> None:
        self._turned = subject.artifact.kind is not Kind.CHECKPOINT

    def __enter__(self) -> "FakeEncoder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, texts: Any, role: str) -> Any:
        angle = np.radians(self.degrees) if self._turned else 0.0
        return np.tile(np.array([np.cos(angle), np.sin(angle)], dtype=np.float32), (len(texts), 1))


@pytest.mark.parametrize("score", [0.0, -0.02])
def test_base_that_scores_nothing_on_a_task_is_an_error_at_once(
    score: float, evaluator: StageEvaluator, make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "TextEncoder", FakeEncoder)
    monkeypatch.setattr(evaluate, "measure_task_accuracy", lambda *_, **__: (accuracy_of("sts:de", {"a": score, "b": score}),))
    with pytest.raises(MeasureError, match=rf"^sts:de: the fp32 base's nDCG@10 is {score:.4f}, .*; check that pooling and prompts"):
        evaluator.evaluate(stage(make_artifact(Kind.CHECKPOINT)))


def evaluate_moved(evaluator: StageEvaluator, make_artifact: Callable[..., Artifact], weights: str) -> Any:
    """The quality of a step that turns every vector by 20 degrees, past the recipe's cosine of 0.97."""
    evaluator.evaluate(stage(make_artifact(Kind.CHECKPOINT), weights=weights))
    return evaluator.evaluate(stage(make_artifact(Kind.ONNX), QuantizeStatic(), weights))


def set_floors(evaluator: StageEvaluator, **floors: float) -> None:
    recipe = evaluator._run.recipe
    evaluator._run.recipe = recipe.model_copy(update={"fidelity": recipe.fidelity.model_copy(update=floors)})


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "TextEncoder", FakeEncoder)
    monkeypatch.setattr(FakeEncoder, "degrees", 20.0)
    monkeypatch.setattr(evaluate, "measure_task_accuracy", lambda *_, **__: (accuracy_of("sts:de", {"a": 0.5}),))


@pytest.mark.usefixtures("moved")
def test_step_that_moves_the_embeddings_too_far_ends_the_run(evaluator: StageEvaluator, make_artifact: Callable[..., Artifact]) -> None:
    with pytest.raises(StepError, match=r"^0 quantize_static: moved the embeddings too far: cosine to the step's source is 0.9397"):
        evaluate_moved(evaluator, make_artifact, "real")


@pytest.mark.usefixtures("moved")
def test_hostile_text_below_the_floor_ends_the_run_and_is_named(evaluator: StageEvaluator, make_artifact: Callable[..., Artifact]) -> None:
    set_floors(evaluator, cosine_mean_min=0.9, hostile_cosine_min=0.95)
    said = (
        r"^0 quantize_static: moved a hostile text too far: its cosine to the step's source is 0.9397, .* at least 0.95 of all 100: .+, '"
    )
    with pytest.raises(StepError, match=said):
        evaluate_moved(evaluator, make_artifact, "real")


@pytest.mark.usefixtures("moved")
def test_hostile_texts_are_measured_without_a_floor(evaluator: StageEvaluator, make_artifact: Callable[..., Artifact]) -> None:
    set_floors(evaluator, cosine_mean_min=0.9)
    quality = evaluate_moved(evaluator, make_artifact, "real")
    assert quality.hostile_to_base.n_texts == quality.hostile_to_source.n_texts == 100
    assert quality.hostile_to_base.minimum == pytest.approx(np.cos(np.radians(20)))


@pytest.mark.usefixtures("moved")
def test_random_weights_that_move_are_a_warning(evaluator: StageEvaluator, make_artifact: Callable[..., Artifact]) -> None:
    quality = evaluate_moved(evaluator, make_artifact, "random")
    assert quality.accuracy == ()
    assert any("moved the embeddings too far" in warning for warning in evaluator.warnings)


def test_step_that_recovers_towards_the_base_is_judged_against_the_base() -> None:
    same, turned = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1]
    to_source, to_base = measure_fidelity(same, turned), measure_fidelity(same, same)
    assert judged_fidelity(Distill(), to_source, to_base) == (to_base, "the base")
    assert judged_fidelity(QuantizeStatic(), to_source, to_base) == (to_source, "the step's source")
