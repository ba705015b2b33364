"""Latency of the recipes by token length and engine, under pytest-benchmark.

    pytest bench/ --benchmark-json=latency.json
    pytest bench/ --benchmark-autosave                # keep a run under .benchmarks/ ...
    pytest bench/ --benchmark-compare                 # ... and compare a later one with it
    pytest bench/ -k "minilm and openvino"

Missing artifacts of minilm-l6 and gte-large (random weights: the latency is true) are made in optbench's cache; other recipes are
included if their weights are in exported/. Groups are by length and recipe. Use these figures to follow one machine over time. To compare
models, use `optbench apply` or `optbench measure`, which time them in interleaved rounds.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bench.artifacts import ROOT, Made, make_artifacts, user_cache
from optbench.artifact.folder import Artifact, open_artifact
from optbench.engines import Engine, Session
from optbench.engines.choice import choose_engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.machine.floor import ProbeResult, floor_ms
from optbench.measure.machine_state import check_machine_state
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe

EXPORTED = ROOT / "exported"
MADE = ("minilm-l6", "gte-large")
LENGTHS = (8, 16, 32, 64, 128)
ENGINES = ("torch-fp32", "onnxruntime-fp32", "openvino-fp32", "recipe")
# torch takes 0.7 s for 128 tokens of a large body.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]


@dataclass(frozen=True)
class Opened:
    """A model in an engine.

    Attributes:
        recipe: its name.
        weights: with `random` ones only the latency is meaningful.
        artifact: that is open.
        engine: that runs it.
        session: of the engine.
    """

    recipe: Recipe
    weights: str
    artifact: Artifact
    engine: Engine
    session: Session


@functools.cache
def made(name: str) -> Made:
    return make_artifacts(name, user_cache())


def exported_weights() -> list[str]:
    """Recipes with weights in exported/: a fresh checkout has only their records."""
    folders = [path.parent for path in sorted(EXPORTED.glob("*/manifest.json"))]
    return [folder.name for folder in folders if any(folder.glob("onnx/*.onnx")) or any(folder.glob("openvino/*.bin"))]


def cells() -> list[tuple[str, str]]:
    """Recipe and engine: each recipe's own artifact, and the baselines of those that are made."""
    others = [(name, "recipe") for name in exported_weights() if name not in MADE]
    return [(name, engine) for name in MADE for engine in ENGINES] + others


@pytest.fixture(scope="module", params=cells(), ids="-".join)
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    name, kind = request.param
    if name in MADE:
        whole = made(name)
        final = whole.recipe.engine_for(whole.final.kind)
        choices: dict[str, tuple[Artifact, Engine]] = {
            "torch-fp32": (whole.base, Torch()),
            "onnxruntime-fp32": (whole.export, OnnxRuntime()),
            "openvino-fp32": (whole.export, OpenVino()),
            "recipe": (whole.final, final),
        }
        recipe, weights, (artifact, engine) = whole.recipe, whole.weights, choices[kind]
    else:
        recipe, artifact = load_recipe(ROOT / "recipes" / f"{name}.yaml"), open_artifact(EXPORTED / name)
        weights, engine = artifact.manifest.weights, choose_engine(artifact, None, {})
    session = engine.open(artifact)
    yield Opened(recipe, weights, artifact, engine, session)
    session.close()


@pytest.fixture(scope="session")
def noise() -> tuple[str, ...]:
    """Warnings about the machine's state."""
    return check_machine_state()


@pytest.mark.parametrize("length", LENGTHS)
def test_latency(benchmark: Any, opened: Opened, length: int, probed: ProbeResult, noise: tuple[str, ...]) -> None:
    body = opened.recipe.base.body
    input_ids = np.random.default_rng(length).integers(5, body.vocabulary, (1, length), dtype=np.int64)
    benchmark.group = f"{length:3} tokens, {opened.recipe.name}"
    benchmark.extra_info |= {
        "engine": opened.engine.model_dump(mode="json"),
        "artifact_sha256": opened.artifact.sha256,
        "weights": opened.weights,
        "floor_int8_ms": floor_ms(body.multiply_adds(length), body.weights, "int8", probed.peaks).ms,
        "machine": probed.machine.model_dump(mode="json"),
        "fingerprint": probed.machine.fingerprint,
        "peaks": probed.peaks.model_dump(mode="json"),
        "warnings": noise,
    }
    vector = benchmark(opened.session.embed, input_ids, np.ones_like(input_ids))
    assert vector.shape == (1, body.hidden)
    assert np.isfinite(vector).all()
