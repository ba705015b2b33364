"""What every step that trains has in common: what it takes and needs, and how long and how hard it trains."""

from abc import ABC
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Kind
from optbench.steps.base import BaseStep

__all__ = ["Evaluations", "HeldOut", "LearningRate", "TrainingStep", "Warmup"]

# Of what has another default in each step, the limits and the meaning are kept here.
LearningRate = Annotated[float, Field(gt=0, lt=1, description="AdamW's, at its highest.")]
Warmup = Annotated[float, Field(gt=0, lt=1, description="Share of a training in which the learning rate rises; then it falls to 0.")]
HeldOut = Annotated[float, Field(gt=0, lt=0.5, description="Share of the data that is not trained on and decides what is kept.")]
Evaluations = Annotated[int, Field(ge=1, le=1000, description="Looks at the held-out part in a training; a checkpoint is kept at each.")]


class TrainingStep(BaseStep, ABC):
    """Trains a checkpoint, once or in several stages; minutes, schedule, evaluations and patience are then each stage's own."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})
    gives: ClassVar[Kind] = Kind.CHECKPOINT
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "sentence-transformers", "accelerate", "tokenizers")
    resumes: ClassVar[bool] = True

    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Time for a training, over all runs that it takes; the schedule then follows the clock, so that two runs end alike "
        "only without it. As long as the epochs take when left out.",
    )
    warmup: Warmup
    weight_decay: float = Field(default=0.01, ge=0, lt=1, description="AdamW's; biases and norms are left out of it.")
    held_out: HeldOut
    evaluations: Evaluations
    patience: int = Field(default=3, ge=1, description="Looks without a gain after which a training stops.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="Arithmetic; auto is bf16 where the CPU multiplies it.")
    seed: int = Field(default=0, ge=0, description="Of everything that is drawn.")

    @property
    def needs_judged(self) -> bool:
        """Always: what is tested must not be learnt."""
        return True
