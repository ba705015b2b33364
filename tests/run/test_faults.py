"""Faults in every stage of a run: Ctrl-C and a full disk. Nothing half-written stays, and the next run goes on from there."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import optbench
from optbench.artifact.folder import open_artifact
from optbench.errors import OptbenchError
from optbench.recipe.load import load_recipe
from optbench.run import apply as runner
from optbench.run.plan import Options
from tests.run.runs import Listening, assert_nothing_half_written

# In the order in which they first run.
STAGES = {
    "base",
    "0 export_onnx",
    "1 convert_openvino",
    "2 quantize_static",
    "latency",
    "serving",
    "stability",
    "export",
}
FILE_BYTES = 8 * 1024


class Interrupting(Listening):
    """Ctrl-C while the first stage that is not in `spared` works, or as it ends if it reports no progress."""

    def __init__(self, spared: list[str]) -> None:
        super().__init__()
        self._spared = spared

    def _stop(self) -> None:
        if self._label not in self._spared:
            self._spared.append(self._label)
            raise KeyboardInterrupt

    def update(self, message: str, share: float | None) -> None:
        super().update(message, share)
        self._stop()

    def end(self, outcome: str) -> None:
        super().end(outcome)
        self._stop()


class FullDisk(Listening):
    """In every stage that is not in `spared`, no process can write a file beyond `FILE_BYTES`, which libraries meet like a full disk."""

    def __init__(self, spared: list[str]) -> None:
        super().__init__()
        self._spared = spared
        self.stage = ""

    def begin(self, label: str) -> None:
        super().begin(label)
        self.stage = label
        limit_files(resource.RLIM_INFINITY if label in self._spared else FILE_BYTES)

    def end(self, outcome: str) -> None:
        super().end(outcome)
        limit_files(resource.RLIM_INFINITY)


def limit_files(size_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size_bytes == resource.RLIM_INFINITY else size_bytes, hard))


@contextmanager
def remembered(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[None]:
    """What each of these functions of a run returned the first time, it returns again: a walk times the models once."""

    def remember(name: str) -> None:
        function, kept = getattr(runner, name), list[Any]()

        def once(*arguments: Any) -> Any:
            if not kept:
                kept.append(function(*arguments))
            return kept[0]

        monkeypatch.setattr(runner, name, once)

    with monkeypatch.context():
        for name in names:
            remember(name)
        yield


def own_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "optbench.machine.worker" in " ".join(child.cmdline())]


def test_ctrl_c_in_every_stage_leaves_nothing_behind(
    write_recipe: Callable[..., Path], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stopped = load_recipe(write_recipe()), list[str]()
    with remembered(monkeypatch, "time_stages", "measure_served"):
        for _ in range(30):
            before = len(stopped)
            try:
                applied = optbench.apply(recipe, options, Interrupting(stopped))
                break
            except KeyboardInterrupt:
                assert len(stopped) == before + 1
                assert_nothing_half_written(options)
                assert own_children() == []
                assert list(options.cache.staging.glob("*")) == []
                assert list(options.output.glob(".staging-*")) == []
    assert set(stopped) >= STAGES, stopped
    assert any("accuracy" in stage for stage in stopped)
    # A stage that had ended was not run again: only the exported folder holds several records, of the runs that got so far.
    assert open_artifact(applied.folder)


def test_full_disk_in_every_stage_is_one_clear_error_and_the_next_run_goes_on(
    write_recipe: Callable[..., Path], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe())
    spared, messages = list[str](), list[str]()
    try:
        with remembered(monkeypatch, "time_stages", "measure_served"):
            for _ in range(30):
                listener = FullDisk(spared)
                try:
                    applied = optbench.apply(recipe, options, listener)
                    break
                except OptbenchError as error:
                    messages.append(str(error))
                limit_files(resource.RLIM_INFINITY)
                spared.append(listener.stage)
                assert_nothing_half_written(options)
                assert list(options.cache.staging.glob("*")) == []
    finally:
        limit_files(resource.RLIM_INFINITY)
    assert all("free some space" in message for message in messages), messages
    # What writes a model or a record. The base comes from a shared cache; the other stages write nothing of that size.
    assert {"0 export_onnx", "1 convert_openvino", "2 quantize_static", "export"} <= set(spared), spared
    assert open_artifact(applied.folder)
