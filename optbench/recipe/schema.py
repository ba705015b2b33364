"""The recipe: one base model, the steps that make it fast, and the targets that judge the result.

A recipe is data: frozen models that forbid unknown keys. `optbench.recipe.load.load_recipe` reads one from YAML.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from optbench.artifact.manifest import Kind
from optbench.base.entry import Base
from optbench.engines import Engine, default_engine
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.steps import Step
from optbench.tasks import Task
from optbench.tasks.general import LANGUAGES
from optbench.tasks.retail import Retail

if TYPE_CHECKING:
    from optbench.machine.floor import WeightFormat
    from optbench.machine.peaks import Peaks

__all__ = ["HOSTILE_TEXTS", "ConditionKind", "Fidelity", "Recipe", "Scenarios", "StabilityTarget", "Targets", "Workload", "recipe_schema"]

CALIBRATION_TEXTS_MIN = 8
Tokens = Annotated[int, Field(ge=1, le=100_000)]
ConditionKind = Literal["order", "padding", "batch", "threads", "isa"]
"""What batch invariance is measured against: the conditions around a text that must not change its embedding."""

# Four of each of the 25 kinds: seconds for a small model, a minute for 24 layers.
HOSTILE_TEXTS = 100


class Targets(Frozen):
    """What the result must reach.

    On the reference machine the milliseconds decide; on any other machine the ratio baseline_ms / latency_ms does.
    """

    box: str = Field(default="i9", pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Reference machine that the milliseconds refer to.")
    baseline_ms: float | None = Field(default=None, gt=0, description="fp32 latency on that machine in ms, batch size 1.")
    latency_ms: float | None = Field(default=None, gt=0, description="Target latency on that machine in ms, batch size 1.")
    speedup_min: float | None = Field(
        default=None, gt=0, description="Target speedup over the fastest fp32 engine on the machine at hand; instead of the milliseconds."
    )
    accuracy_loss_max: float = Field(default=0.01, ge=0, lt=1, description="Largest allowed relative loss of a task's metric: 0.01 is 1 %.")
    index: Literal["own", "fp32"] = Field(
        default="own",
        description="Which index decides on accuracy. own: the result embeds both documents and queries. fp32: the result's queries "
        "search an existing index of the base's document vectors. Both are measured.",
    )

    @model_validator(mode="after")
    def _check_one_kind_of_target(self) -> Self:
        in_ms = (self.baseline_ms is None, self.latency_ms is None)
        if in_ms[0] != in_ms[1] or in_ms[0] == (self.speedup_min is None):
            raise ValueError("give either baseline_ms with latency_ms, or speedup_min")
        return self

    @property
    def speedup(self) -> float:
        """Target ratio of fp32 latency to optimized latency."""
        if self.baseline_ms is not None and self.latency_ms is not None:
            return self.baseline_ms / self.latency_ms
        return self.speedup_min or 1.0


class Workload(Frozen):
    """What is timed, and how often."""

    lengths: tuple[Tokens, ...] = Field(
        default=(8, 16, 32, 64, 128), min_length=1, description="Input lengths in tokens, special tokens included."
    )
    judged_lengths: tuple[Tokens, ...] | None = Field(
        default=None, min_length=1, description="The lengths that the latency target applies to; default: all of them."
    )
    batch: int = Field(default=1, ge=1, le=1024, description="Texts per call.")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="Threads of the engine; default: as many as CPU affinity and cgroup quota allow."
    )
    rounds: int = Field(default=18, ge=3, le=1000, description="Timing rounds. Each round times every model once, interleaved.")
    processes: int = Field(default=6, ge=1, le=1000, description="Fresh processes per model; the rounds are divided among them.")

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(set(self.lengths)) != len(self.lengths):
            raise ValueError(f"lengths {list(self.lengths)} contain a duplicate; list each length once")
        extra = sorted(set(self.judged_lengths or ()) - set(self.lengths))
        if extra:
            raise ValueError(f"judged_lengths {extra} are not in lengths {list(self.lengths)}; add them there")
        return self

    @property
    def judged(self) -> tuple[int, ...]:
        """The lengths that the latency target applies to."""
        return self.judged_lengths or self.lengths


class Fidelity(Frozen):
    """How closely each lossy step must preserve the embeddings. Below these limits the run stops and names the step."""

    cosine_mean_min: float = Field(
        default=0.97, ge=-1, le=1, description="Smallest allowed mean cosine similarity to the embeddings before the step."
    )
    cosine_min: float = Field(default=0.80, ge=-1, le=1, description="Smallest allowed cosine similarity of any one text.")
    texts: int = Field(default=128, ge=8, le=100_000, description="Number of real texts to compare.")
    hostile_texts: int = Field(
        default=HOSTILE_TEXTS,
        ge=0,
        le=100_000,
        exclude_if=lambda count: count == HOSTILE_TEXTS,
        description="Number of hostile texts to compare as well: made from a seed, in 25 kinds such as repeated words, punctuation, "
        "markup, part codes and foreign scripts. None of them is calibrated on. 0: none.",
    )
    hostile_cosine_min: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        exclude_if=lambda limit: limit is None,
        description="Smallest allowed cosine similarity of any one hostile text; default: measured, but not limited.",
    )

    @model_validator(mode="after")
    def _check_hostile_texts(self) -> Self:
        if self.hostile_cosine_min is not None and self.hostile_texts == 0:
            raise ValueError("hostile_cosine_min needs hostile_texts of at least 1")
        return self


class StabilityTarget(Frozen):
    """Batch invariance: how closely an embedding must be preserved when only the conditions around its text change.

    Part of the verdict, except with random weights.
    """

    cosine_min: float = Field(
        default=0.999, ge=-1, le=1, description="Smallest allowed cosine similarity between a text embedded alone and under any condition."
    )
    texts: int = Field(default=64, ge=16, le=10_000, description="Number of real texts to compare.")
    changes: tuple[ConditionKind, ...] = Field(
        default=("order", "padding", "batch", "threads", "isa"), min_length=1, description="The conditions that the verdict considers."
    )
    isas: tuple[Isa, ...] = Field(
        default=(), description="Lower instruction sets to compare with, where the engine can be restricted to them."
    )


class Scenarios(Frozen):
    """Latency of the result under load, in MLPerf's scenarios: single stream, server, offline."""

    rate: float | None = Field(default=None, gt=0, description="Queries per second of an additional server run, at a fixed rate.")
    limit_ms: float | None = Field(
        default=None, gt=0, description="p99 latency limit of the search for the highest rate; default: four times the single-stream p99."
    )
    seconds: float = Field(
        default=10.0, ge=0.1, le=600, description="Duration of each run; all scenarios together take 20 to 40 times as long."
    )
    lengths: tuple[Tokens, ...] = Field(
        default=(), description="Fixed input lengths in tokens for additional single-stream runs, besides real queries."
    )
    batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 8, 32), description="Batch sizes of the offline scenario."
    )
    batch_delay_ms: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        exclude_if=lambda delay: delay is None,
        description="Also serve concurrent queries in common batches, as `AsyncEncoder` does: how long a query waits for others, in ms.",
    )


class Calibration(Frozen):
    """Which texts quantization and pruning calibrate on. Texts that a task judges are always left out."""

    texts: int = Field(
        default=128,
        ge=0,
        le=100_000,
        description="Number of texts from files if there are any, else from what the tasks leave unjudged; half of them are queries. "
        "If less than half as many are found, general texts complete them.",
    )
    files: tuple[Path, ...] = Field(
        default=(),
        exclude_if=lambda files: not files,
        description="Texts like those to be served: .txt (one per line), .jsonl, .csv, .tsv or .parquet (text, optionally title), or a "
        "BEIR folder without its test's texts; paths relative to the recipe. Half of the texts get the query's prompt.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the random draw.")
    general: int = Field(
        default=0,
        ge=0,
        le=100_000,
        exclude_if=lambda count: count == 0,
        description="Number of additional general-domain texts, so that pruning does not overfit the task's domain.",
    )
    languages: tuple[str, ...] = Field(
        default=("en",),
        min_length=1,
        exclude_if=lambda languages: languages == ("en",),
        description="Languages of the general texts, in equal shares: en from WordNet, others from the Declaration of Human Rights.",
    )

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if self.texts + self.general < CALIBRATION_TEXTS_MIN:
            raise ValueError(f"texts and general come to {self.texts + self.general}; give at least {CALIBRATION_TEXTS_MIN} together")
        unknown = [language for language in self.languages if language not in LANGUAGES]
        if unknown:
            raise ValueError(f"languages: there are no general texts in {', '.join(unknown)}; use files, or some of {', '.join(LANGUAGES)}")
        return self


class Recipe(Frozen):
    """One base model, the steps, the targets."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="Name of the output folder: lower-case letters, digits, - and _.")
    description: str = Field(default="", max_length=2000, description="One sentence for the model card.")
    card: str | None = Field(
        default=None,
        min_length=1,
        max_length=20_000,
        exclude_if=lambda text: text is None,
        description="A section of the model card in your own words: Markdown, with headings from ### on.",
    )
    publishes: str | None = Field(default=None, max_length=200, description="Name to publish the result under.")
    base: Base = Field(description="The model to optimize.")
    targets: Targets = Field(description="What the result must reach.")
    engines: tuple[Engine, ...] = Field(
        default=(), description="Engine settings. The first engine here that can open an artifact does; else the default of its kind."
    )
    steps: tuple[Step, ...] = Field(min_length=1, description="What is done to the model, in this order.")
    workload: Workload = Field(default=Workload(), description="Input lengths, batch size, threads and rounds of the timing.")
    fidelity: Fidelity = Field(default=Fidelity(), description="How closely each step must preserve the embeddings.")
    stability: StabilityTarget | None = Field(
        default=None, description="Batch invariance target; default: measured only by `optbench stability`."
    )
    scenarios: Scenarios | None = Field(default=None, description="Latency under load; takes minutes, so it is off by default.")
    calibration: Calibration = Field(default=Calibration(), description="The texts that quantization and pruning calibrate on.")
    tasks: tuple[Task, ...] = Field(
        default=(Retail(task="retail"),),
        min_length=1,
        description="What accuracy is measured on. Texts that they leave unjudged are calibrated on, unless calibration says otherwise.",
    )

    @field_validator("card")
    @classmethod
    def _check_card(cls, text: str | None) -> str | None:
        from optbench.recipe.card_section import section_problem

        if text is not None and (problem := section_problem(text)):
            raise ValueError(problem)
        return text

    # Not part of the recipe: excluded from its hash and from records.
    _folder: Path = PrivateAttr(default_factory=Path)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same content, regardless of where their files are."""
        return isinstance(other, Recipe) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        """Hash of the content."""
        return hash(self.sha256)

    @property
    def folder(self) -> Path:
        """The folder of its file, which relative paths in its steps start from; the current folder if it has no file."""
        return self._folder

    def placed_in(self, folder: Path) -> Self:
        """The same recipe with its file in `folder`."""
        placed = self.model_copy()
        placed._folder = folder
        return placed

    @property
    def sha256(self) -> str:
        """Hash of the recipe's content; comments and layout of the file do not affect it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def engine_for(self, kind: Kind) -> Engine:
        """The engine that opens artifacts of `kind`: the first of the recipe's that can, else the default for that kind."""
        chosen = next((engine for engine in self.engines if kind in engine.opens), default_engine(kind))
        if self.workload.threads is not None and chosen.threads is None:
            return chosen.model_copy(update={"threads": self.workload.threads})
        return chosen

    def floors_ms(self, peaks: "Peaks", weights: "WeightFormat") -> dict[int, float]:
        """The latency floor of its body on a machine with these peaks, in ms, by each token length of the workload."""
        from optbench.machine.floor import floor_ms

        body, batch = self.base.body, self.workload.batch
        return {length: floor_ms(body.multiply_adds(length, batch), body.weights, weights, peaks).ms for length in self.workload.lengths}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors and the reference page."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
