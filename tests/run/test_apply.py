"""The main job on a tiny model: cached, resumable, refused where it cannot end well."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from optbench import apply
from optbench.artifact.folder import open_artifact
from optbench.errors import MachineError
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.record.record import newest_record
from optbench.record.verdict import judge
from optbench.run.apply import Applied
from optbench.run.listener import Silent
from optbench.run.make import make_stages
from optbench.run.plan import Options, Run, make_plan
from tests.run.runs import Listening, assert_nothing_half_written


def test_apply_leaves_a_whole_artifact_with_its_evidence(finished: tuple[Recipe, Path, Applied], finished_options: Options) -> None:
    recipe, _, applied = finished
    artifact = open_artifact(applied.folder)
    assert artifact.kind == "openvino"
    assert {"engine.json", "README.md", "tokenizer.json", "config.json", "modules.json"} <= artifact.manifest.files.keys()
    record = newest_record(applied.folder)
    assert record == applied.record
    assert [point.label for point in record.points] == ["base", "0 export_onnx", "1 convert_openvino", "2 quantize_static"]
    assert set(record.baselines) == {"torch fp32", "onnxruntime fp32", "openvino fp32"}
    assert all(len(timing.samples_ns[8]) == 6 for timing in record.timings)
    assert record.points[-1].accuracy[0].synthetic
    assert record.points[0].accuracy[0].query_side is None
    # The export changes the base's vectors in their last bits only. But the tiny vocabulary knows few of the task's words, so many products
    # have one vector, and rounding decides which of them are the ten nearest: 0.88 of them stay on one thread, 0.99 on two.
    exported = record.points[1].accuracy[0]
    assert exported.query_side is not None
    for overlap in (exported.overlap, exported.query_side.overlap):
        assert overlap is not None
        assert np.mean(list(overlap.values())) > 0.8
    assert record.points[-1].peak_rss_bytes > 50e6
    assert record.serving is not None
    assert applied.verdict == judge(record)
    assert [finding.limit for finding in applied.verdict.findings if finding.unit == "x"] == [0.001] * len(recipe.workload.judged)
    assert_nothing_half_written(finished_options)


def test_second_run_does_no_step_again_and_keeps_the_first_record(
    finished: tuple[Recipe, Path, Applied], finished_options: Options
) -> None:
    recipe, _, first = finished
    listening = Listening()
    second = apply(recipe, finished_options, listening)
    expected = [stage.label for stage in listening.expected]
    assert expected == [label for label, _ in listening.ended if label in expected]
    assert {"base", "base: accuracy", "2 quantize_static", "latency", "serving", "stability", "export"} <= set(expected)
    assert all(stage.seconds > 0 for stage in listening.expected)
    assert listening.cached == ["0 export_onnx", "1 convert_openvino", "2 quantize_static"]
    assert [point.cached for point in second.record.points] == [True, True, True, True]
    assert not first.record.points[1].cached
    assert second.record.final.artifact_sha256 == first.record.final.artifact_sha256
    assert len(list((second.folder / "records").glob("*.json"))) == 2


def test_from_makes_the_named_step_and_later_ones_again(finished: tuple[Recipe, Path, Applied], finished_options: Options) -> None:
    run = Run(finished[0], replace(finished_options, from_step="convert_openvino"))
    assert [step.state for step in make_plan(run).steps] == ["cached", "run", "run"]
    assert [stage.cached for stage in make_stages(run, Silent())] == [True, True, False, False]


def test_corrupted_cache_entry_is_made_again_with_the_same_bytes(
    finished: tuple[Recipe, Path, Applied], finished_options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, _, first = finished
    run = Run(recipe, finished_options)
    key = make_plan(run).steps[1].key
    assert key is not None
    weights = finished_options.cache.artifact(key) / "openvino" / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    stages = make_stages(run, Silent())
    # The step after it finds the source that it had, and so its own result.
    assert [stage.cached for stage in stages] == [True, True, False, True]
    assert "made again" in caplog.text
    assert stages[-1].artifact.sha256 == first.record.final.artifact_sha256
    assert_nothing_half_written(finished_options)


def test_random_weights_are_said_everywhere_and_accuracy_is_not_judged(write_recipe: Callable[..., Path], options: Options) -> None:
    recipe = load_recipe(write_recipe("  - step: export_onnx\n"))
    applied = apply(recipe, replace(options, weights="random"))
    assert applied.record.weights == "random"
    assert not any(point.accuracy for point in applied.record.points)
    assert all(finding.unit == "x" for finding in applied.verdict.findings)
    assert "accuracy is not judged" in applied.verdict.judged_by
    assert "Random weights" in (applied.folder / "README.md").read_text()
    assert any("random" in warning for warning in applied.record.warnings)


def test_two_runs_at_once_are_refused(write_recipe: Callable[..., Path], options: Options) -> None:
    options.output.mkdir()
    with FileLock(options.output / ".tiny.lock"), pytest.raises(MachineError, match="another run of tiny is writing to this output folder"):
        apply(load_recipe(write_recipe()), options)


def test_too_little_disk_is_said_before_anything_is_made(
    write_recipe: Callable[..., Path], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, base = shutil.disk_usage(options.cache.root.parent), list(options.cache.artifacts.glob("*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MachineError, match="are free"):
        apply(load_recipe(write_recipe()), options)
    assert list(options.cache.artifacts.glob("*")) == base


def test_recipe_round_trips_through_its_record(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe())
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


KILLED = """\
import os, signal, sys
from pathlib import Path
from optbench.artifact.folder import open_artifact
from optbench.record.record import newest_record
from optbench.run import apply as runner

artifact, exported, point = open_artifact(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
record = newest_record(exported).model_copy(update={"created": "2030-01-01T00:00:00Z"})
setattr(runner, point, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
runner.export_artifact(artifact, record, exported.parent, "card")
"""


@pytest.mark.parametrize("point", ["write_record", "seal"])
def test_kill_within_the_export_leaves_the_earlier_folder(
    finished: tuple[Recipe, Path, Applied], finished_options: Options, point: str
) -> None:
    made = next(
        folder
        for folder in finished_options.cache.artifacts.iterdir()
        if open_artifact(folder).sha256 == finished[2].record.final.artifact_sha256
    )
    exported = finished_options.output / "tiny"
    before = open_artifact(exported).sha256
    killed = subprocess.run([sys.executable, "-c", KILLED, str(made), str(exported), point], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert open_artifact(exported).sha256 == before
    assert_nothing_half_written(finished_options)
