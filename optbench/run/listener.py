"""Who is told how a run advances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["ExpectedStage", "Listener", "Nested", "Silent"]


@dataclass(frozen=True)
class ExpectedStage:
    """A stage to come.

    Attributes:
        label: as `begin` will name it.
        kind: stages of one kind are faster or slower than expected by the same factor.
        several_passes: whether its share runs from 0 to 1 more than once.
    """

    label: str
    kind: str
    seconds: float
    several_passes: bool = False


class Listener(Protocol):
    """Told of each stage of a run."""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """What is to come, in order, and roughly how long it takes."""

    def begin(self, label: str) -> None:
        """A stage begins."""

    def update(self, message: str, share: float | None) -> None:
        """The stage has done `share` of its work, or an unknown share."""

    def end(self, outcome: str) -> None:
        """The stage ended: `cached`, or what it took."""


class Silent:
    """A listener that ignores everything."""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Ignore it."""

    def begin(self, label: str) -> None:
        """Ignore it."""

    def update(self, message: str, share: float | None) -> None:
        """Ignore it."""

    def end(self, outcome: str) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Nested(Silent):
    """Reports the stages of a run within a stage as that stage's progress."""

    outer: Listener
    label: str

    def begin(self, label: str) -> None:
        """Report it as progress."""
        self.outer.update(f"{self.label}: {label}", None)

    def update(self, message: str, share: float | None) -> None:
        """Report it as progress, without a share: that would be of the inner stage."""
        self.outer.update(f"{self.label}: {message}", None)
