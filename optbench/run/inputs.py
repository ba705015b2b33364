"""What a step declares that it needs, and how a run provides it: the cache key and the step's process both follow from here.

A new kind of need is a subclass of `Input` in `optbench.steps.base` and a resolver in `RESOLVERS`.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue, TypeAdapter

from optbench.artifact.folder import Artifact, open_artifact
from optbench.artifact.manifest import Kind
from optbench.engines import Engine
from optbench.errors import StepError
from optbench.machine.cpu import read_machine
from optbench.machine.extras import require_extra
from optbench.recipe.schema import Recipe
from optbench.steps import Step
from optbench.steps.base import (
    BaseCheckpoint,
    CalibrationTexts,
    CandidateLatencies,
    EvaluationTexts,
    Input,
    LayerLatencies,
    RecipeFiles,
    ResumeFolder,
)
from optbench.steps.pruning.latency import LayerTimes
from optbench.tasks import JudgedTexts

if TYPE_CHECKING:
    from optbench.run.plan import Run

__all__ = ["RESOLVERS", "Resolution", "calibrates", "check_inputs", "describe_inputs", "receive", "resolve"]

# A few rounds settle which candidate is faster; the record's own timing is longer.
CANDIDATE_ROUNDS = 7


@dataclass(frozen=True)
class Resolution:
    """An input as one run provides it.

    Attributes:
        identity: what the step's output depends on; part of the cache key.
        payload: what crosses to the step's process.
    """

    identity: JsonValue
    payload: JsonValue


class Resolver(ABC):
    """How a run provides one kind of input."""

    @abstractmethod
    def find(self, need: Any, step: Step, run: "Run") -> Resolution | None:
        """Resolve it without work; None where it must be measured first, or where the base is not there yet."""

    def obtain(self, need: Any, step: Step, run: "Run") -> Resolution | None:
        """Resolve it, by work if need be."""
        return self.find(need, step, run)

    @contextmanager
    def lend(self, payload: JsonValue, run: "Run", key: str, label: str) -> Iterator[JsonValue]:
        """The payload for as long as the step runs."""
        yield payload

    def receive(self, payload: Any) -> Any:
        """The input's value, in the step's process; the payload itself by default."""
        return payload


class _CalibrationTexts(Resolver):
    def find(self, need: CalibrationTexts, step: Step, run: "Run") -> Resolution:
        texts: JsonValue = list(run.calibration_texts)
        return Resolution(texts, texts)


class _BaseCheckpoint(Resolver):
    def find(self, need: BaseCheckpoint, step: Step, run: "Run") -> Resolution | None:
        return None if run.base is None else Resolution(run.base.sha256, str(run.base.path))

    def receive(self, payload: Any) -> Artifact:
        return open_artifact(Path(payload), verify=False)


class _EvaluationTexts(Resolver):
    def find(self, need: EvaluationTexts, step: Step, run: "Run") -> Resolution:
        return Resolution(run.evaluation_texts.sha256, asdict(run.evaluation_texts))

    def receive(self, payload: Any) -> JudgedTexts:
        return JudgedTexts(**payload)


class _LayerLatencies(Resolver):
    def find(self, need: LayerLatencies, step: Step, run: "Run") -> Resolution | None:
        times = run.find_layer_times()
        return None if times is None else self._resolved(times)

    def obtain(self, need: LayerLatencies, step: Step, run: "Run") -> Resolution:
        return self._resolved(run.find_layer_times() or run.measure_layers(run))

    def _resolved(self, times: LayerTimes) -> Resolution:
        document = times.model_dump(mode="json")
        return Resolution(document, document)

    def receive(self, payload: Any) -> LayerTimes:
        return LayerTimes.model_validate(payload)


class _CandidateLatencies(Resolver):
    def find(self, need: CandidateLatencies, step: Step, run: "Run") -> Resolution:
        chosen, isa, machine = run.recipe.engine_for(step.gives), run.options.isa, run.machine
        if isa is not None and chosen.refusal(isa):
            # An engine that cannot be limited is timed on the whole CPU.
            isa, machine = None, read_machine()
        engine = chosen.model_dump(mode="json")
        payload: JsonValue = {"kind": step.gives, "engine": engine, "isa": isa, "lengths": list(run.recipe.workload.lengths)}
        # The latency is this machine's, and so is a choice that rests on it.
        return Resolution([machine.fingerprint, engine], payload)

    def receive(self, payload: Any) -> Callable[[Sequence[Path]], list[Mapping[int, float]]]:
        from optbench.measure.latency import time_candidates

        engine: Engine = TypeAdapter(Engine).validate_python(payload["engine"])
        return lambda folders: time_candidates(
            Kind(payload["kind"]), folders, engine, payload["lengths"], rounds=CANDIDATE_ROUNDS, isa=payload["isa"]
        )


class _RecipeFiles(Resolver):
    def find(self, need: RecipeFiles, step: Step, run: "Run") -> Resolution:
        files = need.find(run.recipe.folder)
        return Resolution({name: run.hash_file(path) for name, path in files.items()}, str(run.recipe.folder))

    def receive(self, payload: Any) -> Path:
        return Path(payload)


class _ResumeFolder(Resolver):
    def find(self, need: ResumeFolder, step: Step, run: "Run") -> Resolution:
        return Resolution(None, None)

    @contextmanager
    def lend(self, payload: JsonValue, run: "Run", key: str, label: str) -> Iterator[JsonValue]:
        with run.cache.resume_folder(key, label) as folder:
            try:
                yield str(folder)
            except StepError:  # the step refused its input: there is nothing to resume
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)

    def receive(self, payload: Any) -> Path:
        return Path(payload)


RESOLVERS: Mapping[type[Input[Any]], Resolver] = MappingProxyType(
    {
        CalibrationTexts: _CalibrationTexts(),
        BaseCheckpoint: _BaseCheckpoint(),
        EvaluationTexts: _EvaluationTexts(),
        LayerLatencies: _LayerLatencies(),
        CandidateLatencies: _CandidateLatencies(),
        RecipeFiles: _RecipeFiles(),
        ResumeFolder: _ResumeFolder(),
    }
)


def resolve(step: Step, run: "Run", *, work: bool) -> dict[type[Input[Any]], Resolution] | None:
    """Resolve all inputs that a step declares, by measuring if need be and `work` allows it; None where one cannot be resolved yet.

    Raises:
        TaskError: a file that the step reads is missing.
    """
    resolutions = {}
    for need in step.inputs():
        resolver = RESOLVERS[type(need)]
        resolution = resolver.obtain(need, step, run) if work else resolver.find(need, step, run)
        if resolution is None:
            return None
        resolutions[type(need)] = resolution
    return resolutions


def calibrates(recipe: Recipe) -> bool:
    """Whether a step of the recipe needs calibration texts."""
    return any(isinstance(need, CalibrationTexts) for step in recipe.steps for need in step.inputs())


def check_inputs(run: "Run") -> None:
    """Read every text that the run will need, before it starts work of minutes or hours.

    Raises:
        TaskError: a file of a task, of the calibration or of a step is missing or malformed; names the line.
        StepError: a step cannot use its texts; names the step.
        MissingExtraError: a library of a step is not installed.
    """
    _ = run.data
    if calibrates(run.recipe):
        _ = run.calibration
    for index, step in enumerate(run.recipe.steps):
        if step.extra is not None:
            require_extra(step.extra, f"the step {step.step}")
        for need in step.inputs():
            if isinstance(need, RecipeFiles):
                try:
                    need.check(run.recipe.folder)
                except StepError as error:
                    raise StepError(f"{index} {step.step}: {error}") from error


def describe_inputs(run: "Run") -> str:
    """What each task holds and what of it is ranked, and where the calibration texts come from, in one line."""
    notes = [f"calibration: {run.calibration.note}"] if calibrates(run.recipe) else []
    return "; ".join([*(data.describe() for data in run.data), *notes])


def receive(payloads: Mapping[str, JsonValue]) -> dict[type[Input[Any]], Any]:
    """The values of a step's inputs, in its process, from their payloads by class name."""
    kinds = {kind.__name__: kind for kind in RESOLVERS}
    return {kinds[name]: RESOLVERS[kinds[name]].receive(payload) for name, payload in payloads.items()}
