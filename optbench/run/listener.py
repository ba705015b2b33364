"""Who is told how a run advances."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Listener", "Nested", "Silent"]


class Listener(Protocol):
    """Told of each stage of a run."""

    def begin(self, label: str) -> None:
        """A stage begins."""

    def update(self, message: str, share: float | None) -> None:
        """The stage has done `share` of its work, or an unknown share."""

    def end(self, outcome: str) -> None:
        """The stage ended: `cached`, or what it took."""


class Silent:
    """A listener that ignores everything."""

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
