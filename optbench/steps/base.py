"""What a step is: a recipe entry that turns one artifact into another."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact, Kind
from optbench.machine.cpu import Machine
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.steps.pruning.latency import LayerTimes
from optbench.tasks import JudgedTexts

__all__ = ["BaseStep", "Price", "ReduceRange", "Refusal", "StepContext", "StepReport"]

Price = Callable[[Sequence[Path]], list[Mapping[int, float]]]
"""Artifact-shaped folders to the median latency of each in milliseconds by token length, timed in alternation."""

ReduceRange = Annotated[
    bool | Literal["auto"],
    Field(description="7-bit weights, so that products cannot overflow on a CPU without VNNI; auto: only on such a CPU."),
]
"""What steps that round weights to int8 ask, each with the default `auto`."""


class Refusal(Frozen):
    """A place that a rewrite looked at and left alone, and why."""

    rule: str
    node: str
    reason: str


class StepReport(Frozen):
    """What a step did, for the record."""

    matched: dict[str, int] = Field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class StepContext:
    """What a step may need of the world.

    Attributes:
        scratch: an empty folder that is removed afterwards; on the same file system as the output.
        machine: what this machine is.
        calibration_texts: real texts with their prompts in front, queries and documents alike.
        layer_times: what the body's layers take on this machine; for a step whose budget is a latency.
        price: times candidate folders (each in an artifact's layout) against each other on this machine.
        progress: called with a phrase and, where known, the share done in 0..1.
        folder: what relative paths in the options are relative to: where the recipe lies.
        base: the recipe's base, for steps that need it: the checkpoint that training recovers towards.
        judged: what the run's tasks ask and judge, which training must not see.
        unfinished: a folder that outlives a killed run and that the same step on the same source finds again; removed once the step
            has succeeded or refused.
    """

    scratch: Path
    machine: Machine
    calibration_texts: Sequence[str] = ()
    price: Price | None = None
    layer_times: LayerTimes | None = None
    progress: Progress = silent
    folder: Path = Path()
    base: Artifact | None = None
    judged: JudgedTexts = field(default_factory=JudgedTexts)
    unfinished: Path | None = None


class BaseStep(Frozen, ABC):
    """A recipe entry, validated and frozen; the entry is the step.

    Subclasses add `step: Literal["verb_object"]`, the tag of the union in `steps/__init__.py`.

    Attributes:
        takes: kinds of artifact it accepts.
        gives: the kind it makes.
        version: raised whenever the same options would give other bytes; part of the cache key.
        libraries: distributions whose versions are part of the cache key.
        needs_calibration: whether it reads `context.calibration_texts`.
        needs_price: whether it calls `context.price`; its result then belongs to this machine, and so does its cache key.
        needs_base: whether it reads `context.base`, whose hash is then part of its cache key.
        resumes: whether it keeps what it needs to go on after a kill in `context.unfinished`.
    """

    takes: ClassVar[frozenset[Kind]]
    gives: ClassVar[Kind]
    version: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]
    needs_calibration: ClassVar[bool] = False
    needs_price: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    resumes: ClassVar[bool] = False

    @property
    def needs_judged(self) -> bool:
        """Whether it reads `context.judged`; the texts are then part of its cache key."""
        return False

    def files(self, folder: Path) -> Mapping[str, Path]:
        """Files that it reads besides its source, by the name the recipe gives them; their bytes are part of the cache key.

        Args:
            folder: what relative paths in the options are relative to.

        Raises:
            TaskError: one is missing.
        """
        return {}

    @abstractmethod
    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Fill the empty folder `out` with the new artifact's files; `source` is not touched.

        Raises:
            StepError: the source cannot be taken, or the step matched fewer places than its options expect.
        """
