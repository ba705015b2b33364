"""Measuring finished artifacts against each other, without a recipe."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult
from optbench.measure.encoding import TextEncoder
from optbench.measure.fidelity import Fidelity
from optbench.measure.hostile import HostileFidelity
from optbench.measure.latency import Timing
from optbench.measure.machine_state import check_machine_state
from optbench.measure.subject import Subject
from optbench.measure.timing_warnings import timing_warnings
from optbench.recipe.schema import HOSTILE_TEXTS, Workload
from optbench.run.cache import Cache
from optbench.run.listener import Listener
from optbench.run.measure import measure_task_accuracy, time_subjects
from optbench.tasks import Task, load_tasks

__all__ = ["MeasuredArtifacts", "measure_artifacts", "read_subjects", "time_alternately"]

# As many as a recipe's defaults come to.
ROUNDS_A_PROCESS = 3


class MeasuredArtifacts(Frozen):
    """What `optbench measure` measured: one timing an artifact, from one interleaved run, and accuracy by artifact.

    Attributes:
        hostile: cosine to the first artifact over hostile texts, of the others; measured where accuracy is.
    """

    timings: tuple[Timing, ...]
    accuracy: dict[str, tuple[AccuracyResult, ...]]
    hostile: dict[str, Fidelity] = Field(default_factory=dict)
    warnings: tuple[str, ...]


def read_subjects(folders: Sequence[Path], engine: str | None = None, isa: Isa | None = None) -> list[Subject]:
    """Artifact folders as subjects, labeled by folder name, or by position and path where two names are equal.

    Raises:
        ArtifactError: a folder is not a whole artifact.
        EngineError: the engine's options are broken, or it cannot open an artifact.
    """
    names = [folder.name for folder in folders]
    labels = [name if names.count(name) == 1 else f"{index} {folders[index]}" for index, name in enumerate(names)]
    return [Subject.read(folder, isa, engine=engine, label=label) for folder, label in zip(folders, labels, strict=True)]


def measure_artifacts(
    subjects: Sequence[Subject], workload: Workload, tasks: Sequence[Task], cache: Cache, listener: Listener
) -> MeasuredArtifacts:
    """Time artifacts against each other, and measure their accuracy on tasks, also with their queries in an index of the first.

    With tasks and several artifacts, the cosine to the first over hostile texts is measured too.
    """
    disturbances = check_machine_state()
    timings = time_subjects(subjects, workload, listener)
    accuracy: dict[str, tuple[AccuracyResult, ...]] = {}
    hostile: dict[str, Fidelity] = {}
    data = load_tasks(tasks)
    compared = HostileFidelity(HOSTILE_TEXTS if len(subjects) > 1 else 0)
    for subject in subjects if data else []:
        listener.begin(f"accuracy of {subject.label}")
        base = None if subject is subjects[0] else subjects[0]
        results = measure_task_accuracy(subject, data, cache, base=base, progress=listener.update)
        accuracy[subject.label] = results
        with TextEncoder(subject, cache.embeddings, listener.update) as encode:
            fidelity = compared.compare(encode)
        if fidelity is not None:
            hostile[subject.label] = fidelity[1]
        listener.end("; ".join(f"{result.main_metric} {result.mean():.4f} on {result.task}" for result in results))
    return MeasuredArtifacts(timings=timings, accuracy=accuracy, hostile=hostile, warnings=(*disturbances, *timing_warnings(timings)))


def time_alternately(
    folders: tuple[Path, Path], workload: Workload, isa: Isa | None, *, processes: int, listener: Listener
) -> tuple[Timing, Timing]:
    """Time two artifacts against each other, each in the engine that it was measured with, three rounds a process.

    Only lengths and batch are taken from the workload.

    Raises:
        ArtifactError: a folder is not a whole artifact.
        EngineError: an engine cannot open its artifact here.
    """
    subjects = [Subject.read(folder, isa, label=label) for label, folder in zip(("old", "new"), folders, strict=True)]
    settings = workload.model_copy(update={"rounds": ROUNDS_A_PROCESS * processes, "processes": processes})
    old, new = time_subjects(subjects, settings, listener)
    return old, new
