"""What a step is: a recipe entry that turns one artifact into another, and declares what it needs of the world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent

if TYPE_CHECKING:
    from optbench.machine.cpu import Machine
    from optbench.model.body import Body
    from optbench.steps.pruning.latency import LayerTimes
    from optbench.tasks import JudgedTexts  # noqa: F401  # named in the string below

__all__ = [
    "HOSTILE_SAMPLES",
    "BaseCheckpoint",
    "BaseStep",
    "CalibrationTexts",
    "CandidateLatencies",
    "EvaluationTexts",
    "HostileSamples",
    "Input",
    "LayerLatencies",
    "RecipeFiles",
    "ReduceRange",
    "Refusal",
    "ResumeFolder",
    "StepContext",
    "StepReport",
]

ReduceRange = Annotated[
    bool | Literal["auto"],
    Field(description="7-bit weights, so that sums of products cannot overflow on a CPU without VNNI; auto: only on such a CPU."),
]
"""The option of steps that round weights to int8; its default is `auto`."""

HostileSamples = Annotated[
    int,
    Field(
        ge=0,
        le=10_000,
        description="Number of hostile texts to calibrate on as well, such as repeated words, punctuation, markup and foreign scripts: "
        "without any, such inputs exceed the ranges of activations.",
    ),
]
"""The option of steps that calibrate activation ranges."""

# Four of each kind. Twice as many raise the worst cosine by about .015 and take twice the time: bench/LOG.md, Q10.
HOSTILE_SAMPLES = 52


class Refusal(Frozen):
    """A place that a rewrite left alone, and why."""

    rule: str
    node: str
    reason: str


class StepReport(Frozen):
    """What a step did, for the record."""

    matched: dict[str, int] = Field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, JsonValue] = Field(default_factory=dict)


Value = TypeVar("Value")


@dataclass(frozen=True)
class Input(Generic[Value]):
    """Something that a step needs besides its source; `Value` is what the step receives.

    A new kind of need is a subclass here and a resolver of the same name in `optbench.run.inputs`, which says what of it belongs to
    the cache key and how it reaches the step's process.
    """


class CalibrationTexts(Input["Sequence[str]"]):
    """The recipe's calibration texts: real queries and documents with their prompts in front."""


class BaseCheckpoint(Input[Artifact]):
    """The recipe's base: the model whose accuracy a step recovers."""


class EvaluationTexts(Input["JudgedTexts"]):
    """The queries and judged documents of the run's tasks, which no step may train on."""


class LayerLatencies(Input["LayerTimes"]):
    """The measured latency of the body's layers on this machine after the recipe's later steps."""


class CandidateLatencies(Input["Callable[[Sequence[Path]], list[Mapping[int, float]]]"]):
    """A function from artifact folders to the median latency of each in ms by token length, timed in alternation on this machine."""


@dataclass(frozen=True)
class RecipeFiles(Input[Path]):
    """Files beside the recipe; the step receives the folder that relative paths start from.

    `find` takes that folder and returns the files, by the names that the recipe gives them; it raises TaskError where one is missing.
    `check` takes it too, reads the files once, and raises the error that would stop the step.
    """

    find: Callable[[Path], Mapping[str, Path]]
    check: Callable[[Path], None] = lambda folder: None


class ResumeFolder(Input[Path]):
    """A folder that outlives a killed run: the same step on the same source finds it again. Removed once the step ends."""


@dataclass(frozen=True)
class StepContext:
    """The world as a step sees it.

    Attributes:
        scratch: an empty folder that is removed afterwards; on the same file system as the output.
        progress: called with a phrase and, where known, the share done in 0..1.
        values: what each declared input was resolved to, by its class.
    """

    scratch: Path
    machine: Machine
    progress: Progress = silent
    values: Mapping[type[Input[Any]], Any] = field(default_factory=dict)

    def get(self, kind: type[Input[Value]]) -> Value | None:
        """The value of an input; None where the step did not declare it."""
        return self.values.get(kind)

    def need(self, kind: type[Input[Value]]) -> Value:
        """The value of an input that the step declared; StepError if it was not provided."""
        if kind not in self.values:
            raise StepError(f"needs {kind.__name__}, which was not provided")
        value: Value = self.values[kind]
        return value


class BaseStep(Frozen, ABC):
    """A recipe entry, validated and frozen; the entry is the step.

    Subclasses narrow `step` to their name, as `step: Literal["verb_object"] = "verb_object"`.

    Attributes:
        takes: kinds of artifact it accepts.
        version: raised whenever the same options would give other bytes; part of the cache key.
        libraries: distributions whose versions are part of the cache key.
        extra: the extra that it needs besides `build`.
        pace: rough seconds that it takes, fixed and for each 1e8 weights of the body, for the time left of a run.
    """

    if TYPE_CHECKING:
        step: str = ""  # for type checkers; a field here would change the order of every subclass's fields
    takes: ClassVar[frozenset[Kind]]
    gives: ClassVar[Kind]
    version: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]
    extra: ClassVar[str | None] = None
    pace: ClassVar[tuple[float, float]] = (5.0, 20.0)

    def expected_seconds(self, body: Body) -> float:
        """Rough seconds that it takes on a body, on two cores of a Zen 5."""
        fixed, per_weight = self.pace
        return fixed + per_weight * body.weights / 1e8

    def inputs(self) -> tuple[Input[Any], ...]:
        """What it needs besides its source, with these options: at most one of each class."""
        return ()

    def predict_layers(self, body: Body, times: LayerTimes) -> Sequence[tuple[int, int]] | None:
        """Expected heads and feed-forward width of each layer of the output; None for a step that does not change them."""
        return None

    def machine_warnings(self, machine: Machine) -> Sequence[str]:
        """Warnings for the record about running its artifact on this machine."""
        return ()

    @abstractmethod
    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Fill the empty folder `out` with the new artifact's files; `source` is not touched.

        Raises:
            StepError: the source is not acceptable, or the step matched fewer places than its options expect.
            BaseModelError: an incomplete checkpoint.
            TaskError: a file of texts that is missing or cannot be read.
            MissingExtraError: a library that only an extra installs is missing.
            MachineError: the disk is full.
        """
