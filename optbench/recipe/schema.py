"""The recipe: one base model, the steps that make it fast, and the targets that judge the result.

A recipe is data: frozen models that refuse unknown keys. `recipe_file.load_recipe` reads one.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from optbench.artifact.folder import Kind
from optbench.base.obtain import Base
from optbench.engines import Engine, default_engine
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.measure.stability import Changes
from optbench.steps import Step
from optbench.tasks import Retail, Task

__all__ = ["Fidelity", "Recipe", "Scenarios", "StabilityFloor", "Targets", "Workload", "recipe_schema"]

Tokens = Annotated[int, Field(ge=1, le=100_000)]


class Targets(Frozen):
    """What the result is judged against.

    On the box the milliseconds judge; on any other machine the ratio baseline_ms / latency_ms does.
    """

    box: str = Field(default="i9", pattern=r"^[a-z0-9][a-z0-9._-]*$", description="The reference machine the milliseconds hold for.")
    baseline_ms: float | None = Field(default=None, gt=0, description="fp32 latency on the box, batch 1.")
    latency_ms: float | None = Field(default=None, gt=0, description="Wanted latency on the box, batch 1.")
    speedup_min: float | None = Field(
        default=None, gt=0, description="Wanted speed-up over the fastest fp32 engine, where no box figures exist."
    )
    accuracy_loss_max: float = Field(default=0.01, ge=0, lt=1, description="Largest relative loss of a task's metric: 0.01 is 1 %.")
    index: Literal["own", "fp32"] = Field(
        default="own",
        description="Where accuracy is judged: own, documents and queries embedded by the result; fp32, its queries in an index of "
        "the base's document vectors, as one that exists already. Both are measured.",
    )

    @model_validator(mode="after")
    def _one_kind_of_target(self) -> Self:
        in_ms = (self.baseline_ms is None, self.latency_ms is None)
        if in_ms[0] != in_ms[1] or in_ms[0] == (self.speedup_min is None):
            raise ValueError("give either baseline_ms with latency_ms, or speedup_min")
        return self

    @property
    def speedup(self) -> float:
        """The wanted ratio of fp32 latency to optimized latency."""
        if self.baseline_ms is not None and self.latency_ms is not None:
            return self.baseline_ms / self.latency_ms
        return self.speedup_min or 1.0


class Workload(Frozen):
    """What is timed."""

    lengths: tuple[Tokens, ...] = Field(default=(8, 16, 32, 64, 128), min_length=1, description="Token lengths, special tokens included.")
    judged_lengths: tuple[Tokens, ...] | None = Field(
        default=None, min_length=1, description="The lengths that the target holds for; all of them when left out."
    )
    batch: int = Field(default=1, ge=1, le=1024, description="Texts in one call.")
    threads: int | None = Field(default=None, ge=1, le=1024, description="What affinity and cgroup quota allow when left out.")
    rounds: int = Field(default=18, ge=3, le=1000, description="Rounds of the interleaved timing; each engine is timed once a round.")
    processes: int = Field(
        default=6,
        ge=1,
        le=1000,
        description="How often each model is opened in a fresh process; the rounds are shared out among these.",
    )

    @model_validator(mode="after")
    def _judged_are_measured(self) -> Self:
        if len(set(self.lengths)) != len(self.lengths):
            raise ValueError(f"lengths {list(self.lengths)} name one length twice; name each once")
        extra = sorted(set(self.judged_lengths or ()) - set(self.lengths))
        if extra:
            raise ValueError(f"judged_lengths {extra} are not among lengths {list(self.lengths)}; add them there")
        return self

    @property
    def judged(self) -> tuple[int, ...]:
        """The lengths that the latency target is judged at."""
        return self.judged_lengths or self.lengths


class Fidelity(Frozen):
    """How far a step that changes numbers may move the embeddings; below, the run stops and names the step."""

    cosine_mean_min: float = Field(default=0.97, ge=-1, le=1, description="Mean cosine to the step's source over the texts.")
    cosine_min: float = Field(default=0.80, ge=-1, le=1, description="Smallest cosine of any one text.")
    texts: int = Field(default=128, ge=8, le=100_000, description="Real texts that are compared.")


class StabilityFloor(Frozen):
    """How far an embedding may move when only what surrounds its text changes; the verdict judges it, with real weights."""

    cosine_min: float = Field(default=0.999, ge=-1, le=1, description="Smallest cosine of any text to itself alone, in any condition.")
    texts: int = Field(default=64, ge=16, le=10_000, description="Real texts that are compared.")
    changes: tuple[Changes, ...] = Field(
        default=("order", "padding", "batch", "threads", "isa"), min_length=1, description="What may change; only these judge."
    )
    isas: tuple[Isa, ...] = Field(default=(), description="Smaller instruction sets to compare with, where the engine can be held to them.")


class Scenarios(Frozen):
    """Latency as a service sees it, of the result, under MLPerf's names: single stream, server, offline."""

    rate: float | None = Field(default=None, gt=0, description="Queries a second to run the server scenario at, beside the search.")
    limit_ms: float | None = Field(
        default=None, gt=0, description="p99 limit of the search for the highest rate; four times the single stream's when left out."
    )
    seconds: float = Field(default=10.0, ge=0.1, le=600, description="Of each run; all together take 20 to 40 times as long.")
    lengths: tuple[Tokens, ...] = Field(default=(), description="Fixed token lengths to run the single stream at, beside real queries.")
    batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 8, 32), description="Batch sizes of the offline scenario."
    )


class Calibration(Frozen):
    """The texts that quantizers and pruning see."""

    texts: int = Field(default=128, ge=8, le=100_000, description="How many, half queries and half documents, of the first task.")
    seed: int = Field(default=0, ge=0, description="Which of them are drawn.")
    general: int = Field(
        default=0,
        ge=0,
        le=100_000,
        exclude_if=lambda count: count == 0,
        description="Further English texts of no domain in particular, from WordNet, so that a pruned model keeps what the task lacks.",
    )


class Recipe(Frozen):
    """One base model, the steps, the targets."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="Names the output folder: lower-case letters, digits, - and _.")
    description: str = Field(default="", max_length=2000, description="A sentence for people; the card shows it.")
    publishes: str | None = Field(default=None, max_length=200, description="The name that the result is published under.")
    base: Base = Field(description="The model to begin with.")
    targets: Targets = Field(description="What the result is judged against.")
    engines: tuple[Engine, ...] = Field(
        default=(), description="Engine settings by kind of artifact; each engine's defaults where left out."
    )
    steps: tuple[Step, ...] = Field(min_length=1, description="What is done to the model, in this order.")
    workload: Workload = Field(default=Workload(), description="Token lengths, batch, threads and rounds of the timing.")
    fidelity: Fidelity = Field(default=Fidelity(), description="How far a step may move the embeddings.")
    stability: StabilityFloor | None = Field(default=None, description="A floor for how far surroundings may move an embedding.")
    scenarios: Scenarios | None = Field(default=None, description="Latency under a service's load; it takes minutes, so it is left out.")
    calibration: Calibration = Field(default=Calibration(), description="How many texts quantizers see, and which.")
    tasks: tuple[Task, ...] = Field(
        default=(Retail(task="retail"),), min_length=1, description="What accuracy is measured on; the first gives calibration texts."
    )

    # Not a part of what the recipe says: neither its hash nor a record holds it.
    _folder: Path = PrivateAttr(default_factory=Path)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, wherever their files lie."""
        return isinstance(other, Recipe) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        """Of what it says."""
        return hash(self.sha256)

    @property
    def folder(self) -> Path:
        """Where its file lies, which paths in its steps are relative to; the current folder for one that has no file."""
        return self._folder

    def placed_in(self, folder: Path) -> Self:
        """The same recipe, its file being in `folder`."""
        placed = self.model_copy()
        placed._folder = folder
        return placed

    @property
    def sha256(self) -> str:
        """Hash of the recipe's meaning: comments and layout of the file do not move it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def engine_for(self, kind: Kind) -> Engine:
        """The engine that opens artifacts of `kind`: the recipe's first that can, else the default of that kind."""
        chosen = next((engine for engine in self.engines if kind in engine.opens), default_engine(kind))
        if self.workload.threads is not None and chosen.threads is None:
            return chosen.model_copy(update={"threads": self.workload.threads})
        return chosen


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
