"""Fidelity and accuracy of one stage after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optbench.errors import MeasureError, StepError
from optbench.measure.accuracy import AccuracyResult
from optbench.measure.encoding import TextEncoder
from optbench.measure.fidelity import Fidelity, measure_fidelity
from optbench.measure.hostile import HostileFidelity
from optbench.measure.subject import Subject
from optbench.run.inputs import calibrates
from optbench.run.listener import Listener
from optbench.run.measure import TaskData, TaskTexts, measure_task_accuracy
from optbench.run.plan import Run, Stage
from optbench.steps import Step
from optbench.steps.base import BaseCheckpoint

__all__ = ["StageEvaluator", "StageQuality", "stage_subject"]

# With random weights fidelity only shows that the graph still computes the same function, and a few texts show that.
RANDOM_TEXTS = 32


@dataclass(frozen=True)
class StageQuality:
    """How good a stage's embeddings are: cosine to the stage before and to the base, None for the base itself; accuracy by task.

    There is neither accuracy nor a cosine over hostile texts with random weights.
    """

    to_source: Fidelity | None
    to_base: Fidelity | None
    accuracy: tuple[AccuracyResult, ...]
    hostile_to_source: Fidelity | None = None
    hostile_to_base: Fidelity | None = None


class StageEvaluator:
    """Measures stage after stage against the one before and against the base, on the tasks' own texts.

    Attributes:
        texts: a sample of the tasks' texts for fidelity, serving and stability.
        warnings: for the record.
    """

    def __init__(self, run: Run, listener: Listener) -> None:
        """Load the tasks."""
        self.warnings: list[str] = [f"{data.name}: {note}" for data in run.data for note in data.notes]
        if calibrates(run.recipe) and run.calibration.warning:
            self.warnings.append(run.calibration.warning)
        self.data: TaskData = run.data
        self.texts = TaskTexts.sample(self.data, RANDOM_TEXTS if run.options.weights == "random" else run.recipe.fidelity.texts)
        self._hostile = HostileFidelity(run.recipe.fidelity.hostile_texts if run.options.weights == "real" else 0)
        self._run, self._listener = run, listener
        self._base: tuple[Subject, NDArray[np.float32]] | None = None
        self._before: NDArray[np.float32] | None = None

    def evaluate(self, stage: Stage) -> StageQuality:
        """Measure one stage.

        Raises:
            StepError: the step moved the embeddings further than the recipe's fidelity allows (real weights only).
            MeasureError: the base's score on a task is 0 or less (real weights only).
        """
        real = stage.artifact.weights == "real"
        self._listener.begin(f"{stage.label}: {'accuracy' if real else 'fidelity'}")
        subject = self._subject(stage)
        cache, progress = self._run.cache, self._listener.update
        with TextEncoder(subject, cache.embeddings, progress) as encode:
            vectors = np.concatenate([encode(self.texts.queries, "query"), encode(self.texts.documents, "document")])
            hostile = self._hostile.compare(encode)
        to_source = None if self._before is None else measure_fidelity(self._before, vectors)
        to_base = None if self._base is None else measure_fidelity(self._base[1], vectors)
        self._before = vectors
        if to_source is not None and to_base is not None:
            self._check_fidelity(stage, *judged_fidelity(stage.step, to_source, to_base))
        if hostile is not None:
            self._check_hostile(stage, *judged_fidelity(stage.step, *hostile))
        base = None if self._base is None else self._base[0]
        accuracy = measure_task_accuracy(subject, self.data, cache, base=base, progress=progress) if real else ()
        if self._base is None:
            check_base_scores(accuracy)
            self._base = (subject, vectors)
        parts = [f"{result.main_metric} {result.mean(result.main_metric):.4f} on {result.task}" for result in accuracy]
        if to_base is not None:
            parts.append(f"cosine to fp32 {to_base.mean:.4f}, worst of {to_base.n_texts} texts {to_base.minimum:.4f}")
        if hostile is not None:
            parts.append(f"worst of {hostile[1].n_texts} hostile texts {hostile[1].minimum:.4f}")
        self._listener.end("; ".join(parts) or "reference")
        return StageQuality(to_source, to_base, accuracy, *(hostile or ()))

    def _subject(self, stage: Stage) -> Subject:
        """The stage in the recipe's engine, on the whole CPU where the engine cannot be held to an instruction set."""
        subject = stage_subject(stage, self._run)
        if not subject.refusal:
            return subject
        engine = subject.engine.engine
        self.warnings.append(f"{stage.label}: accuracy and cosine are those of the whole CPU: {engine} cannot be held to {subject.isa}")
        return Subject(subject.artifact, subject.engine, label=subject.label)

    def _check_fidelity(self, stage: Stage, fidelity: Fidelity, reference: str) -> None:
        limits = self._run.recipe.fidelity
        if fidelity.mean >= limits.cosine_mean_min and fidelity.minimum >= limits.cosine_min:
            return
        problem = (
            f"{stage.label}: moved the embeddings too far: cosine to {reference} is {fidelity.mean:.4f} on average and "
            f"{fidelity.minimum:.4f} at worst over {fidelity.n_texts} texts; the recipe expects at least {limits.cosine_mean_min} and "
            f"{limits.cosine_min}"
        )
        if stage.artifact.weights == "random":
            self.warnings.append(f"{problem}; the weights are random, so the run continues")
            return
        raise StepError(f"{problem}; choose a gentler setting for this step, or lower the recipe's fidelity limits on purpose")

    def _check_hostile(self, stage: Stage, fidelity: Fidelity, reference: str) -> None:
        limit = self._run.recipe.fidelity.hostile_cosine_min
        if limit is None or fidelity.minimum >= limit:
            return
        raise StepError(
            f"{stage.label}: moved a hostile text too far: its cosine to {reference} is {fidelity.minimum:.4f}, and the recipe expects at "
            f"least {limit} of all {fidelity.n_texts}: {self._hostile.describe(fidelity.worst)}; give calibration more hostile texts, or "
            "lower the recipe's hostile_cosine_min on purpose"
        )


def stage_subject(stage: Stage, run: Run) -> Subject:
    """A stage in the engine that the recipe names for its kind."""
    return Subject(stage.artifact, run.recipe.engine_for(stage.artifact.kind), run.options.isa, stage.label)


def check_base_scores(results: Sequence[AccuracyResult]) -> None:
    """Check that there is accuracy to lose on every task, before minutes go into steps that could not be judged.

    Raises:
        MeasureError: the fp32 base scores 0 or less on a task.
    """
    for result in results:
        if result.mean() <= 0:
            raise MeasureError(
                f"{result.task}: the fp32 base's {result.main_metric} is {result.mean():.4f}, so no loss can be measured against it; check "
                "that pooling and prompts are the model's own and that the task is in its language, or remove the task"
            )


def judged_fidelity(step: Step | None, to_source: Fidelity, to_base: Fidelity) -> tuple[Fidelity, str]:
    """The fidelity that the recipe's limits apply to, and the name of its reference.

    A step that trains towards the base moves on purpose: what counts is how near to the base it ends.
    """
    recovers = step is not None and any(isinstance(need, BaseCheckpoint) for need in step.inputs())
    return (to_base, "the base") if recovers else (to_source, "the step's source")
