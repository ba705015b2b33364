"""A tiny recipe, and what tests of whole runs look at."""

from optbench.artifact.folder import open_artifact
from optbench.run.plan import Options

__all__ = ["STEPS", "Listening", "assert_nothing_half_written"]

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


def assert_nothing_half_written(options: Options) -> None:
    """Whatever lies in the cache or the output folder is whole."""
    for folder in options.cache.artifacts.glob("*"):
        open_artifact(folder)
    for folder in options.output.glob("[!.]*"):
        open_artifact(folder)
