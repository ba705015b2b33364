"""The scenarios under two or three concurrency models, each in a fresh process.

`one_session`: one session on all threads behind a queue; each query has the whole machine. `many_sessions`: one single-threaded
session per core behind one queue; a query takes longer, but no thread waits for another. Which serves more at the same p99 depends
on the engine, the model and the lengths, so it is measured. `batched`, on request: one session on all threads that runs concurrent
queries in common batches, as `AsyncEncoder` does.

Sessions are not thread-safe, so each has its own thread; the engines release the GIL while they compute. Only inference is timed,
token ids in and embedding out; `latency.measure_serving` times tokenization.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact
from optbench.engines import Engine, Session
from optbench.engines.batching import BATCH_MAX, Batcher, plan_batches
from optbench.engines.openvino import OpenVino
from optbench.errors import MeasureError
from optbench.machine.cpu import usable_threads
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.footprint import MemorySample, read_memory
from optbench.measure.latency import warm_until_stable
from optbench.measure.load.arrivals import ServerPool, SystemClock, draw_queries, run_in_threads, serve_arrivals
from optbench.measure.load.report import REAL_QUERIES, Concurrency, ConcurrencyResult, ScenarioReport, scenario_notes, serves_more
from optbench.measure.load.scenarios import HighestRate, Offline, ServerRun, SingleStream, highest_rate, offline, server, single_stream
from optbench.measure.machine_state import check_machine_state
from optbench.measure.subject import Subject
from optbench.model.checkpoint import read_body
from optbench.model.padding import pad_batch
from optbench.recipe.schema import Scenarios

__all__ = ["REAL_QUERIES", "concurrency_models", "make_batches", "run_scenarios"]

Input: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]

# The first run of a shape grows the arena or plans the kernels.
WARM_RUNS = 2
# Concurrent callers of a batched session: a batch that runs, and one that waits.
CALLERS = 2 * BATCH_MAX
# Queries at once that warm up the shapes of batches.
WARM_BURST = 8 * BATCH_MAX
# Distinct inputs of a fixed length, so that no run finds the previous one's embedding rows in the cache.
DISTINCT_INPUTS = 8
# The default p99 limit: allows a short queue, or a query that runs on one of a few cores.
LIMIT_OF_SINGLE_P99 = 4.0


def concurrency_models(engine: Engine, batch_delay_ms: float | None = None) -> tuple[Concurrency, ...]:
    """The ways to use the engine's threads: `many_sessions` where there are several, `batched` where a delay is given."""
    threads = engine.threads or usable_threads()
    one = Concurrency(name="one_session", sessions=1, engine=engine)
    batched = () if batch_delay_ms is None else (Concurrency(name="batched", sessions=1, engine=engine, batch_delay_ms=batch_delay_ms),)
    if threads == 1:
        return (one, *batched)
    changes: dict[str, Any] = {"threads": 1}
    if isinstance(engine, OpenVino) and engine.enable_cpu_pinning is None:
        # Each compiled model pins its threads regardless of the others in the process: two may share a core.
        changes["enable_cpu_pinning"] = False
    return (one, Concurrency(name="many_sessions", sessions=threads, engine=engine.model_copy(update=changes)), *batched)


def make_batches(rows: Sequence[NDArray[np.int64]], batch: int, pad_id: int) -> list[Input]:
    """Sort the (tokens,) ids of texts by length, longest first, and pad each `batch` of them to its longest.

    Returns:
        input_ids and attention_mask of each batch, (batch, tokens of its longest text) int64; the last batch may have fewer texts.
    """
    ordered = sorted(rows, key=len, reverse=True)
    return [pad_batch(ordered[start : start + batch], pad_id) for start in range(0, len(ordered), batch)]


class _Service:
    """The warm sessions of one concurrency model, in the worker process."""

    def __init__(self, payload: Mapping[str, Any], progress: Progress) -> None:
        subject = Subject.received(payload)
        begin_ns = time.perf_counter_ns()
        self._sessions = [subject.open() for _ in range(payload["sessions"])]
        self.load_ms = (time.perf_counter_ns() - begin_ns) / 1e6
        self._pad_id = read_body(subject.artifact.path).pad_id
        self._rows = {name: [np.array(row, dtype=np.int64) for row in rows] for name, rows in payload["workloads"].items()}
        self._queries = {name: [_single(row) for row in rows] for name, rows in self._rows.items()}
        self._pool = ServerPool([partial(_embed, session) for session in self._sessions], SystemClock())
        self._progress = progress
        self._mean_ns = math.nan
        progress("warm-up", None)
        self._warm_shapes([each for queries in self._queries.values() for each in queries])
        real = sorted(self._queries[REAL_QUERIES], key=lambda each: each[0].shape)
        run_in_threads([partial(_warm_until_stable, serve, real[len(real) // 2]) for serve in self._pool.servers])
        if payload["batch_delay_ms"] is not None:
            self._batch_callers(payload["batch_delay_ms"])

    def _batch_callers(self, delay_ms: float) -> None:
        """Replace the session by callers whose queries share its batches, and warm up the shapes of those."""
        batcher = Batcher(self._embed_together, delay_s=delay_ms / 1e3, size_max=BATCH_MAX)
        self._pool = ServerPool([lambda query: batcher.submit(query).result()] * CALLERS, SystemClock())
        burst = draw_queries(self._queries[REAL_QUERIES], WARM_BURST, seed=0)
        serve_arrivals(self._pool, burst, np.zeros(len(burst), dtype=np.int64))

    def _embed_together(self, queries: list[Input]) -> list[None]:
        rows = [ids[0] for ids, _ in queries]
        for batch in plan_batches(list(map(len, rows)), BATCH_MAX):
            self._sessions[0].embed(*pad_batch([rows[index] for index in batch], self._pad_id))
        return [None] * len(queries)

    def _warm_shapes(self, inputs: Sequence[Input]) -> None:
        shapes = list({each[0].shape: each for each in inputs}.values())

        def run(serve: Callable[[Input], None]) -> None:
            for each in shapes:
                for _ in range(WARM_RUNS):
                    serve(each)

        run_in_threads([partial(run, serve) for serve in self._pool.servers])

    def single_stream(self, workload: str, seconds: float) -> SingleStream:
        result = single_stream(self._pool.servers[0], self._queries[workload], seconds, self._pool.clock)
        if workload == REAL_QUERIES:
            self._mean_ns = result.latency.mean_ns
        return result

    def server(self, rate: float, seconds: float) -> ServerRun:
        return server(self._pool, self._queries[REAL_QUERIES], rate, seconds)

    def highest_rate(self, limit_ms: float, seconds: float) -> HighestRate:
        # The capacity if the sessions never idled and did not slow each other down.
        first_rate = len(self._sessions) / self._mean_ns * 1e9
        queries = self._queries[REAL_QUERIES]
        return highest_rate(self._pool, queries, limit_ms, seconds, first_rate=first_rate, progress=self._progress)

    def offline(self, batch: int, seconds: float) -> Offline:
        # As many texts as take `seconds` one by one, and at least two batches per server.
        servers = len(self._pool.servers)
        n_texts = max(2 * batch * servers, round(seconds * servers / self._mean_ns * 1e9))
        batches = make_batches(draw_queries(self._rows[REAL_QUERIES], n_texts, seed=0), batch, self._pad_id)
        self._warm_shapes(batches)
        return offline(self._pool, batches, n_texts, batch)


def _single(row: NDArray[np.int64]) -> Input:
    return row[np.newaxis], np.ones((1, len(row)), dtype=np.int64)


def _embed(session: Session, query: Input) -> None:
    session.embed(*query)


def _warm_until_stable(serve: Callable[[Input], None], query: Input) -> None:
    def run() -> int:
        begin_ns = time.perf_counter_ns()
        serve(query)
        return time.perf_counter_ns() - begin_ns

    warm_until_stable(run)


def serve_scenarios(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Worker process: open and warm the sessions, then run a scenario per request, first the single stream of real queries."""
    service: _Service | None = None
    answer: Any = None
    while True:
        request = yield answer
        if service is None:
            service = _Service(payload, progress)
        match request["do"]:
            case "open":
                answer = service.load_ms
            case "single stream":
                answer = service.single_stream(request["workload"], request["seconds"]).model_dump()
            case "highest rate":
                answer = service.highest_rate(request["limit_ms"], request["seconds"]).model_dump()
            case "server":
                answer = service.server(request["rate"], request["seconds"]).model_dump()
            case "offline":
                answer = service.offline(request["batch"], request["seconds"]).model_dump()
            case "memory":
                answer = read_memory().model_dump()


def run_scenarios(
    subject: Subject, queries_token_ids: Sequence[NDArray[np.int64]], settings: Scenarios, progress: Progress = silent
) -> ScenarioReport:
    """Run all scenarios under each concurrency model, one process after the other.

    This takes about 10 to 20 times `settings.seconds` per model, mostly for the search for the highest rate. many_sessions opens the
    artifact once per thread; an engine that does not map the weights then keeps a copy per thread. `queries_token_ids` are the task's
    real queries with their prompt, (tokens,) each.

    Raises:
        MeasureError: no queries, or an empty one.
        EngineError: the engine cannot open the artifact, or cannot be limited to the subject's instruction set.
        MachineError: a process was killed, usually for lack of memory.
    """
    workloads = _workloads(subject.artifact, queries_token_ids, settings.lengths)
    models = concurrency_models(subject.engine, settings.batch_delay_ms)
    disturbances = check_machine_state()
    results: list[ConcurrencyResult] = []
    limit = settings.limit_ms or 0.0
    for index, model in enumerate(models):
        payload = {"sessions": model.sessions, "batch_delay_ms": model.batch_delay_ms, "workloads": workloads}
        batches = settings.batches if model.batch_delay_ms is None else ()
        with replace(subject, engine=model.engine).start(serve_scenarios, payload) as worker:
            ask = partial(_Requests(worker, progress, model.name, index / len(models), 1 / len(models)), seconds=settings.seconds)
            load_ms = ask("open", 0.0)
            single = {name: SingleStream.model_validate(ask("single stream", 0.1, workload=name)) for name in workloads}
            limit = limit or LIMIT_OF_SINGLE_P99 * single[REAL_QUERIES].latency.p99_ns.point / 1e6
            results.append(
                ConcurrencyResult(
                    concurrency=model,
                    load_ms=load_ms,
                    single_stream=single,
                    highest=HighestRate.model_validate(ask("highest rate", 0.2, limit_ms=limit)),
                    server=None if settings.rate is None else ServerRun.model_validate(ask("server", 0.8, rate=settings.rate)),
                    offline=tuple(Offline.model_validate(ask("offline", 0.9, batch=batch)) for batch in batches),
                    memory=MemorySample.model_validate(ask("memory", 1.0)),
                )
            )
    return ScenarioReport(
        artifact_sha256=subject.artifact.sha256,
        engine=subject.engine_options,
        tokens=tuple(sorted(map(len, queries_token_ids))),
        seconds=settings.seconds,
        limit_ms=limit,
        limit_given=settings.limit_ms is not None,
        models=tuple(results),
        serves_more=serves_more(results),
        notes=(*disturbances, *scenario_notes(results, subject.engine)),
    )


# The share of a model's time that the search takes: the one request that reports its own progress.
SEARCH_SHARE = 0.6


@dataclass(frozen=True)
class _Requests:
    """Sends a concurrency model's requests, and reports progress over all models: `done` before this one, `share` in it."""

    worker: Worker
    progress: Progress
    name: str
    done: float
    share: float

    def __call__(self, do: str, begin: float, **options: Any) -> Any:
        def report(message: str, share: float | None) -> None:
            self.progress(f"{self.name}: {message}", self.done + self.share * (begin + SEARCH_SHARE * (share or 0.0)))

        report(do, None)
        return self.worker.request({"do": do, **options}, report)


def _workloads(artifact: Artifact, queries: Sequence[NDArray[np.int64]], lengths: Sequence[int]) -> dict[str, list[list[int]]]:
    """Token ids by workload: the real queries, and seeded random ones of each fixed length."""
    wrong = [
        f"queries_token_ids[{index}] has shape {np.shape(row)}" for index, row in enumerate(queries) if np.ndim(row) != 1 or not len(row)
    ]
    if wrong or not queries:
        problem = wrong[0] if wrong else "no queries"
        raise MeasureError(f"scenarios: {problem}; expected at least one query, each as one dimension of token ids without padding")
    workloads = {REAL_QUERIES: [np.asarray(row).tolist() for row in queries]}
    vocabulary = read_body(artifact.path).vocabulary
    for length in lengths:
        drawn = np.random.default_rng(length).integers(min(5, vocabulary - 1), vocabulary, (DISTINCT_INPUTS, length))
        workloads[f"{length} tokens"] = drawn.tolist()
    return workloads
