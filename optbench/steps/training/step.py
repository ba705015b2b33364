"""What the training steps share: what they take and need, and the options of a training."""

from abc import ABC
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.manifest import Kind
from optbench.steps.base import BaseStep, EvaluationTexts, Input, ResumeFolder

if TYPE_CHECKING:
    from optbench.model.body import Body

__all__ = ["Evaluations", "HeldOut", "LearningRate", "TrainingStep", "Warmup"]

# Limits and descriptions of options whose default differs between the steps.
LearningRate = Annotated[float, Field(gt=0, lt=1, description="AdamW's peak learning rate.")]
Warmup = Annotated[float, Field(gt=0, lt=1, description="Share of the training in which the learning rate rises; then it falls to 0.")]
HeldOut = Annotated[float, Field(gt=0, lt=0.5, description="Share of the data that is held out to choose the best checkpoint.")]
Evaluations = Annotated[
    int, Field(ge=1, le=1000, description="Evaluations on the held-out part during the training; each saves a checkpoint.")
]


class TrainingStep(BaseStep, ABC):
    """Trains a checkpoint in one or more stages; minutes, schedule, evaluations and patience apply to each stage."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})
    gives: ClassVar[Kind] = Kind.CHECKPOINT
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "sentence-transformers", "accelerate", "tokenizers")
    extra: ClassVar[str | None] = "train"

    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Wall-clock budget of a training, over all runs that it takes; the schedule then follows the clock, so results are not "
        "reproducible. No limit if left out.",
    )
    warmup: Warmup
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="AdamW's; not applied to biases and norms.")
    held_out: HeldOut
    evaluations: Evaluations
    patience: int = Field(default=3, ge=1, description="Evaluations without improvement before early stopping.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="Arithmetic; auto: bf16 on a CPU with bf16 products.")
    seed: int = Field(default=0, ge=0, description="Random seed.")

    def expected_seconds(self, body: "Body") -> float:
        """The budget, if there is one."""
        return super().expected_seconds(body) if self.minutes is None else 60 * self.minutes

    def inputs(self) -> tuple[Input[Any], ...]:
        """The evaluation texts, which it refuses to train on, and a folder to resume from."""
        return EvaluationTexts(), ResumeFolder()
