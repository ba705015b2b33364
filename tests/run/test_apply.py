"""The main job on a tiny model: cached, resumable, nothing half-written whatever ends it."""

import json
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

from optbench.artifact.folder import Artifact, open_artifact
from optbench.errors import MachineError, StepError
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.record.record import newest_record
from optbench.run.apply import Applied, Options, apply, plan
from optbench.run.plan import Cache

STEPS = "  - step: export_onnx\n  - step: convert_openvino\n  - step: quantize_static\n"


class Listening:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self._label = ""

    def begin(self, label: str) -> None:
        self._label = label

    def update(self, message: str, share: float | None) -> None:
        assert share is None or 0 <= share <= 1

    def end(self, outcome: str) -> None:
        self.ended.append((self._label, outcome))

    @property
    def cached(self) -> list[str]:
        return [label for label, outcome in self.ended if outcome == "cached"]


@pytest.fixture(scope="module")
def write_recipe(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Artifact]) -> Callable[..., Path]:
    def write(steps: str = STEPS) -> Path:
        path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
        path.write_text(
            f"""\
name: tiny
base:
  source: path:{make_checkpoint().path}
  license: MIT
  body: {{architecture: BertModel, layers: 2, hidden: 32, heads: 4, feed_forward: 64, vocabulary: 21, positions: 64, type_vocabulary: 2}}
  pooling: mean
  normalize: true
  max_tokens: 64
targets: {{speedup_min: 0.001, accuracy_loss_max: 0.5}}
steps:
{steps}workload: {{lengths: [8, 16], rounds: 6, processes: 2}}
calibration: {{texts: 16}}
fidelity: {{cosine_mean_min: 0.9, cosine_min: 0.5, texts: 32}}
stability: {{cosine_min: 0.99, texts: 16, changes: [order, padding, batch]}}
""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> tuple[Recipe, Path, Applied]:
    """A recipe that has run once, and the folder that holds its cache and output."""
    recipe = load_recipe(write_recipe("  - step: export_onnx\n  - step: convert_openvino\n"))
    root = tmp_path_factory.mktemp("finished")
    return recipe, root, apply(recipe, Options(cache=Cache(root / "cache"), output=root / "exported"))


@pytest.fixture
def finished_options(finished: tuple[Recipe, Path, Applied], options: Options, tmp_path: Path) -> Options:
    """A copy of the finished run, to go on from."""
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    return options


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(cache=Cache(tmp_path / "cache"), output=tmp_path / "exported")


def assert_nothing_half_written(options: Options) -> None:
    """Whatever lies in the cache or the output folder is whole."""
    for folder in options.cache.artifacts.glob("*"):
        open_artifact(folder)
    for folder in options.output.glob("[!.]*"):
        open_artifact(folder)


def test_apply_leaves_a_whole_artifact_with_its_evidence(write_recipe: Callable[..., Path], options: Options) -> None:
    recipe = load_recipe(write_recipe())
    applied = apply(recipe, options)
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
    # The export moves the base's vectors in their last bits only. But the tiny vocabulary knows few words of the task, so many products
    # are one text to it, and which of such equals are the ten nearest is chance: .986 of them stayed.
    exported = record.points[1].accuracy[0]
    assert exported.query_side is not None
    for overlap in (exported.overlap, exported.query_side.overlap):
        assert overlap is not None
        assert np.mean(list(overlap.values())) > 0.9
    assert record.points[-1].peak_rss_bytes > 50e6
    assert record.serving is not None
    assert applied.verdict.exit_status in (0, 1, 3)
    assert_nothing_half_written(options)


def test_second_run_does_no_step_again_and_keeps_the_first_record(
    finished: tuple[Recipe, Path, Applied], finished_options: Options
) -> None:
    recipe, _, first = finished
    listening = Listening()
    second = apply(recipe, finished_options, listening)
    assert listening.cached == ["0 export_onnx", "1 convert_openvino", "baseline export"]
    assert [point.cached for point in second.record.points] == [True, True, True]
    assert not first.record.points[0].cached
    assert second.record.final.artifact_sha256 == first.record.final.artifact_sha256
    assert len(list((second.folder / "records").glob("*.json"))) == 2


def test_from_makes_the_named_step_and_later_ones_again(finished: tuple[Recipe, Path, Applied], finished_options: Options) -> None:
    recipe = finished[0]
    again = replace(finished_options, from_step="convert_openvino")
    assert [step.state for step in plan(recipe, again).steps] == ["cached", "run"]
    listening = Listening()
    apply(recipe, again, listening)
    assert listening.cached == ["0 export_onnx", "baseline export"]


def test_corrupted_cache_entry_is_made_again(
    finished: tuple[Recipe, Path, Applied], finished_options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, _, first = finished
    key = plan(recipe, finished_options).steps[1].key
    assert key is not None
    weights = finished_options.cache.artifact(key) / "openvino" / "openvino_model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    listening = Listening()
    second = apply(recipe, finished_options, listening)
    assert listening.cached == ["0 export_onnx", "baseline export"]
    assert "made again" in caplog.text
    assert second.record.final.artifact_sha256 == first.record.final.artifact_sha256
    assert_nothing_half_written(finished_options)


def test_broken_step_stops_the_run_and_is_named(write_recipe: Callable[..., Path], options: Options) -> None:
    path = write_recipe()
    strict = path.read_text().replace("cosine_mean_min: 0.9, cosine_min: 0.5", "cosine_mean_min: 0.9, cosine_min: 1.0")
    path.write_text(strict)
    with pytest.raises(StepError, match=r"moved the embeddings too far: cosine to the step's source is") as raised:
        apply(load_recipe(path), options)
    assert str(raised.value)[0].isdecimal()
    assert not (options.output / "tiny").exists()
    assert_nothing_half_written(options)


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
    with FileLock(options.output / ".tiny.lock"), pytest.raises(MachineError, match="another run of tiny is at work"):
        apply(load_recipe(write_recipe()), options)


def test_too_little_disk_is_said_before_anything_is_made(
    write_recipe: Callable[..., Path], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(options.cache.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MachineError, match="are free"):
        apply(load_recipe(write_recipe()), options)
    assert not list(options.cache.artifacts.glob("*"))


def command(path: Path, options: Options) -> list[str]:
    where = ["--cache", str(options.cache.root), "--output", str(options.output), "--json"]
    return [sys.executable, "-m", "optbench", "apply", str(path), *where]


def test_kill_at_any_stage_loses_at_most_that_stage(write_recipe: Callable[..., Path], options: Options) -> None:
    """Killed again and again, each time one stage later; every run goes on from what the one before had finished."""
    path = write_recipe()
    stages = ["base", "0 export_onnx", "1 convert_openvino", "2 quantize_static", "baseline export"]
    for stage in stages:
        process = subprocess.Popen(command(path, options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if f"  {stage}:" in line:  # it has just ended: what follows is running
                break
        else:
            pytest.fail(f"{stage} never ended:\n{''.join(lines)}")
        process.kill()
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL
        made = [line for line in lines if any(f"  {earlier}: cached" in line for earlier in stages[1 : stages.index(stage)])]
        assert len(made) == len(stages[1 : stages.index(stage)]), lines
        assert_nothing_half_written(options)
    done = subprocess.run(command(path, options), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 3), done.stderr
    assert done.stderr.count(": cached") == len(stages)
    assert json.loads(done.stdout)["folder"] == str(options.output / "tiny")
    assert_nothing_half_written(options)
    assert not list(options.cache.staging.glob("*"))


def test_interrupt_stops_with_its_own_status_and_leaves_no_process(write_recipe: Callable[..., Path], options: Options) -> None:
    with subprocess.Popen(command(write_recipe(), options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "  0 export_onnx:" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()  # ends when the last process that holds the pipe is gone
    assert process.returncode == 130
    assert "the next run goes on from there" in rest
    assert "Traceback" not in rest
    assert_nothing_half_written(options)


@pytest.mark.parametrize("kilobytes", [8, 64, 90])
def test_full_disk_while_something_is_written_is_one_clear_error(
    kilobytes: int, write_recipe: Callable[..., Path], options: Options
) -> None:
    """The largest file that the processes may write is bounded, which libraries meet like a full disk."""
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$0" "$@"', *command(write_recipe(), options)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_half_written(options)


def test_recipe_round_trips_through_its_record(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe())
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
