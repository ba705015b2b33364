"""What is measured between the steps: a base that finds nothing ends the run, and what the CPU lacks is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optbench.artifact.folder import Artifact, Kind
from optbench.engines.onednn import MAX_ISA
from optbench.errors import MeasureError
from optbench.machine.cpu import read_machine
from optbench.recipe.load import load_recipe
from optbench.run import measure as evidence
from optbench.run.apply import Silent
from optbench.run.make import Made, Stage
from optbench.run.measure import NumbersGauge, int8_warnings
from optbench.run.plan import Cache
from optbench.steps.base import StepReport
from tests.conftest import accuracy_of

RECIPE = Path(__file__).parents[2] / "recipes" / "gte-large.yaml"


@pytest.mark.parametrize("score", [0.0, -0.02])
def test_base_that_finds_nothing_on_a_task_is_an_error_at_once(
    score: float, make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPE)

    def measured(*_: Any, **__: Any) -> Any:
        return accuracy_of("sts:de", {"a": score, "b": score})

    monkeypatch.setattr(evidence, "measure_accuracy", measured)
    gauge = NumbersGauge(recipe, recipe.tasks, Cache(tmp_path), "real", None, Silent())
    artifact = replace(make_artifact(Kind.ONNX), weights="real")
    base = Stage("base", None, artifact, Made(report=StepReport(), seconds=0, peak_rss_bytes=0), cached=False)
    with pytest.raises(MeasureError, match=rf"^sts:de: the fp32 base's nDCG@10 is {score:.4f}, .*; check that pooling and prompts"):
        gauge.measure(base)


@pytest.mark.parametrize(
    ("flags", "cap", "said"),
    [
        (("avx2",), None, "no VNNI"),
        (("avx512bw", "avx512_vnni"), None, None),
        (("avx512_vnni", "amx_int8"), None, "off AMX"),
        # Whoever set the cap decides, and was not kept off anything.
        (("avx512_vnni", "amx_int8"), "AVX512_CORE_AMX", None),
    ],
)
def test_what_keeps_int8_from_a_cpus_best_is_said(
    flags: tuple[str, ...], cap: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MAX_ISA, raising=False)
    if cap is not None:
        monkeypatch.setenv(MAX_ISA, cap)
    warnings = int8_warnings(read_machine().model_copy(update={"flags": flags}))
    assert len(warnings) == (said is not None)
    assert all(str(said) in warning for warning in warnings)
