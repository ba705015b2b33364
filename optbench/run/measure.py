"""Measuring subjects on the texts of tasks: what `apply` and the commands for finished artifacts share."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact
from optbench.errors import TaskError
from optbench.machine.cpu import Isa
from optbench.machine.progress import Progress
from optbench.measure.accuracy import AccuracyResult, measure_accuracy
from optbench.measure.encoding import TextEncoder
from optbench.measure.latency import Timing, measure_latency
from optbench.measure.load.concurrency import run_scenarios
from optbench.measure.load.report import ScenarioReport
from optbench.measure.stability import Stability, StabilityTexts, measure_stability
from optbench.measure.subject import Subject
from optbench.model.checkpoint import describe, read_prompts
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.recipe.schema import Scenarios, Workload
from optbench.run.cache import Cache
from optbench.run.listener import Listener
from optbench.tasks import PairData, RetrievalData

__all__ = ["TaskData", "TaskTexts", "measure_load", "measure_task_accuracy", "measure_text_stability", "query_rows", "time_subjects"]

TaskData = Sequence[RetrievalData | PairData]


@dataclass(frozen=True)
class TaskTexts:
    """Real texts of the tasks, evenly spread over them, as files are often sorted by subject.

    Attributes:
        queries: half of them, without prompts.
        documents: the other half; all of them where the tasks have no queries.
    """

    queries: Sequence[str]
    documents: Sequence[str]

    @classmethod
    def sample(cls, data: TaskData, count: int) -> "TaskTexts":
        """`count` texts, in the tasks' own order."""
        queries = [each.queries for each in data if isinstance(each, RetrievalData)]
        documents: list[Mapping[Any, str]] = [
            each.documents if isinstance(each, RetrievalData) else dict(enumerate(each.first)) for each in data
        ]
        half = min(count // 2, sum(map(len, queries)))
        return cls(_spread(queries, half), _spread(documents, count - half))


def _spread(sources: Sequence[Mapping[Any, str]], count: int) -> list[str]:
    """`count` evenly spread texts; only those are read."""
    total = sum(map(len, sources))
    count = min(count, total)
    chosen = {index * total // count for index in range(count)}
    names = ((source, name) for source in sources for name in source)
    return [source[name] for index, (source, name) in enumerate(names) if index in chosen]


def measure_task_accuracy(
    subject: Subject, data: TaskData, cache: Cache, *, base: Subject | None = None, progress: Progress
) -> tuple[AccuracyResult, ...]:
    """Accuracy on every task; beside a base also with its queries in an index of the base's documents.

    What the base has embedded is read from the cache, and the base is not opened.
    """
    results, similarity = [], describe(subject.artifact.path).similarity
    with TextEncoder(subject, cache.embeddings, progress) as encode, ExitStack() as stack:
        base_encode = None if base is None else stack.enter_context(TextEncoder(base, cache.embeddings, progress))
        encode.expect(sum(map(_count_texts, data)))
        for each in data:
            encode.begin(each.name)
            if base_encode is not None:
                base_encode.begin(f"{each.name}, fp32 base")
            results.append(measure_accuracy(encode, each, base=base_encode, similarity=similarity))
    return tuple(results)


def _count_texts(data: RetrievalData | PairData) -> int:
    """How many texts a model embeds for a task."""
    return 2 * len(data.first) if isinstance(data, PairData) else len(data.queries) + len(data.candidates)


def measure_text_stability(subject: Subject, texts: TaskTexts, cache: Cache, isas: Sequence[Isa], progress: Progress) -> Stability:
    """How a subject's vectors of the queries change with batch, padding, threads and instruction set.

    Changes of the top 10 are counted over `texts.documents`, as the subject itself embeds them.

    Raises:
        MeasureError: too few queries.
    """
    with TextEncoder(subject, cache.embeddings, progress) as encode:
        documents = encode(texts.documents, "document")
    chosen, prompt = (texts.queries, "query") if texts.queries else (texts.documents, "document")
    return measure_stability(subject, StabilityTexts(chosen, prompt, documents), isas=isas, progress=progress)


def query_rows(artifact: Artifact, data: TaskData) -> list[NDArray[np.int64]]:
    """The token ids of every real query with its prompt, (tokens,) each, as a service would send them.

    Raises:
        TaskError: the tasks have no queries.
    """
    queries = [text for each in data for text in (each.queries.values() if isinstance(each, RetrievalData) else each.first)]
    if not queries:
        raise TaskError("scenarios: the tasks have no queries; name one that has, such as --task retail")
    tokenizer, prompt = load_tokenizer(artifact.path), read_prompts(artifact.path).query
    return [encode_batch(tokenizer, [prompt + query])[0][0] for query in queries]


def measure_load(subject: Subject, data: TaskData, settings: Scenarios, progress: Progress) -> ScenarioReport:
    """A subject under a service's load, with all real queries of the tasks.

    Raises:
        TaskError: the tasks have no queries.
    """
    return run_scenarios(subject, query_rows(subject.artifact, data), settings, progress)


def time_subjects(subjects: Sequence[Subject], workload: Workload, listener: Listener) -> tuple[Timing, ...]:
    """Time subjects against each other in one interleaved run.

    Raises:
        EngineError: an engine cannot open its artifact here.
    """
    listener.begin("latency")
    timings = measure_latency(
        subjects,
        workload.lengths,
        batch=workload.batch,
        rounds=workload.rounds,
        processes=workload.processes,
        progress=listener.update,
    )
    listener.end(f"{len(timings)} models at {len(workload.lengths)} lengths, {workload.rounds} rounds")
    return timings
