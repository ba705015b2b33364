"""A tiny recipe, and what tests of whole runs look at."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from optbench.artifact.folder import open_artifact
from optbench.run.cache import Cache
from optbench.run.listener import ExpectedStage
from optbench.run.plan import Options

__all__ = ["STEPS", "Listening", "assert_nothing_half_written", "leave_unfinished"]

STEPS = "  - step: export_onnx\n  - step: convert_openvino\n  - step: quantize_static\n"


class Listening:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self._label = ""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        self.expected = list(stages)

    def begin(self, label: str) -> None:
        self._label = label

    def update(self, message: str, share: float | None) -> None:
        assert share is None or 0 <= share <= 1

    def end(self, outcome: str) -> None:
        self.ended.append((self._label, outcome))

    @property
    def cached(self) -> list[str]:
        return [label for label, outcome in self.ended if outcome == "cached"]


def assert_nothing_half_written(options: Options) -> None:
    """Whatever lies in the cache or the output folder is whole."""
    for folder in options.cache.artifacts.glob("*"):
        open_artifact(folder)
    for folder in options.output.glob("[!.]*"):
        open_artifact(folder)


def leave_unfinished(cache: Cache, key: str, days: float, *, newest_days: float | None = None) -> Path:
    """What a killed training leaves, last touched `days` ago, its newest file `newest_days` ago."""
    folder = cache.unfinished / key
    checkpoint = folder / "checkpoints" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    weights = checkpoint / "trained.safetensors"
    for path in (folder / ".lock", weights):
        path.touch()
    for path in (folder / ".lock", weights, checkpoint, checkpoint.parent, folder):
        touched = time.time() - 24 * 60 * 60 * (newest_days if newest_days is not None and path == weights else days)
        os.utime(path, (touched, touched))
    return folder
