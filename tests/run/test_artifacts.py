"""Artifacts against each other without a recipe: hostile texts are compared with the first artifact, where accuracy is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.torch import Torch
from optbench.measure.subject import Subject
from optbench.recipe.schema import Workload
from optbench.record.record import Record
from optbench.report.measured import measured_tables
from optbench.run import artifacts
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.tasks import Task
from optbench.tasks.retail import Retail
from tests.conftest import accuracy_of
from tests.run.test_evaluate import FakeEncoder


@pytest.mark.parametrize(("tasks", "compared"), [((Retail(),), ["onnx"]), ((), [])])
def test_hostile_texts_are_compared_with_the_first_artifact(
    tasks: tuple[Task, ...],
    compared: list[str],
    make_artifact: Callable[..., Artifact],
    make_record: Callable[..., Record],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def time_none(subjects: Any, *_: Any) -> Any:
        timing = make_record().timings[0]
        return tuple(timing.model_copy(update={"label": subject.label}) for subject in subjects)

    monkeypatch.setattr(artifacts, "time_subjects", time_none)
    monkeypatch.setattr(artifacts, "TextEncoder", FakeEncoder)
    monkeypatch.setattr(FakeEncoder, "degrees", 20.0)
    monkeypatch.setattr(artifacts, "measure_task_accuracy", lambda *_, **__: (accuracy_of("retail", {"a": 0.5, "b": 0.6}),))
    subjects = [
        Subject(make_artifact(Kind.CHECKPOINT), Torch(engine="torch"), label="torch"),
        Subject(make_artifact(Kind.ONNX), OnnxRuntime(engine="onnxruntime"), label="onnx"),
    ]
    measured = artifacts.measure_artifacts(subjects, Workload(), tasks, Cache(tmp_path), Silent())
    assert list(measured.hostile) == compared
    titles = [table.title for table in measured_tables(measured)]
    assert ("Cosine to torch over hostile texts" in titles) == bool(compared)
    for fidelity in measured.hostile.values():
        assert fidelity.n_texts == 100
        assert fidelity.minimum == pytest.approx(np.cos(np.radians(20)))
