"""How long a run still takes: from the share that the present stage has done, and from what is expected of the later ones."""

import time
from collections.abc import Callable, Sequence

from optbench.run.listener import ExpectedStage

__all__ = ["TimeLeft"]

# Before a pass has done this much for this long, its pace says little.
SHARE_MIN, PACE_SECONDS_MIN = 0.02, 0.5


class TimeLeft:
    """Told what a `Listener` is told; gives seconds.

    What finished stages of a kind took, over what was expected of them, corrects the later stages of that kind: a machine may be several
    times as fast as the one that the expectations are from.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._coming: list[ExpectedStage] = []
        self._current: ExpectedStage | None = None
        # By kind of stage: seconds taken and seconds expected of those that have ended.
        self._taken: dict[str, tuple[float, float]] = {}
        self.begin("")

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """The stages to come, in order."""
        self._coming = list(stages)

    def begin(self, label: str) -> None:
        """A stage begins; expected ones before it were left out."""
        self._current = None
        places = [index for index, stage in enumerate(self._coming) if stage.label == label]
        if places:
            self._current = self._coming[places[0]]
            del self._coming[: places[0] + 1]
        self._began = self._updated = self._pass_began = self._clock()
        self._share: float | None = None
        self._pass_share = 0.0

    def update(self, share: float | None) -> None:
        """The stage has done `share` of its present pass; a smaller one than before begins another pass."""
        if share is None:
            return
        now = self._clock()
        if self._share is None or share < self._share:
            self._pass_began, self._pass_share = now, share
        self._share, self._updated = share, now

    def end(self) -> None:
        """The stage ended."""
        if self._current is not None:
            taken, expected = self._taken.get(self._current.kind, (0.0, 0.0))
            self._taken[self._current.kind] = (taken + self.elapsed, expected + self._current.seconds)
        self._current, self._share = None, None

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._began

    def stage(self) -> float | None:
        """Seconds that the stage still takes; None if unknown."""
        expected = None if self._current is None else self._corrected(self._current) - self.elapsed
        paced = self._pass()
        if paced is None:
            return expected if expected is not None and expected > 0 else None
        several = self._current is not None and self._current.several_passes
        return max(paced, expected) if several and expected is not None else paced

    def run(self) -> float | None:
        """Seconds that the whole run still takes; None if no stages were expected."""
        if self._current is None and not self._coming:
            return None
        return (self.stage() or 0.0) + sum(map(self._corrected, self._coming))

    def _pass(self) -> float | None:
        """Seconds that the present pass still takes, at its pace so far."""
        if self._share is None:
            return None
        done, seconds = self._share - self._pass_share, self._updated - self._pass_began
        if done < SHARE_MIN or seconds < PACE_SECONDS_MIN:
            return None
        return max(0.0, (1 - self._share) * seconds / done - (self._clock() - self._updated))

    def _corrected(self, stage: ExpectedStage) -> float:
        taken, expected = self._taken.get(stage.kind, (0.0, 0.0))
        return stage.seconds * (taken / expected if expected else 1.0)
