"""One artifact as a service would run it: the scenarios under two concurrency models, each in a fresh process.

`one_session`: one session on all threads, and a queue in front; a query has the whole machine for itself. `many_sessions`: a
session with one thread for each core, all fed by one queue; a query takes longer, and no thread waits for another. Which
serves more at the same p99 depends on the engine, the model and the lengths, so it is measured.

Sessions are not thread-safe, so each belongs to one worker thread; the engines let go of the interpreter's lock while they
compute. The figures are of inference alone, token ids in and embedding out: tokenization is in `latency.measure_serving`.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact, Kind
from optbench.engines import Engine, OpenVino, Session
from optbench.errors import MeasureError
from optbench.machine.cpu import Isa, usable_threads
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.footprint import MemorySample, read_memory
from optbench.measure.latency import warm_until_stable
from optbench.measure.load.arrivals import SystemClock, draw_queries, run_in_threads
from optbench.measure.load.report import REAL_QUERIES, Concurrency, ConcurrencyResult, ScenarioReport, scenario_notes, serves_more
from optbench.measure.load.scenarios import HighestRate, Offline, ServerRun, SingleStream, highest_rate, offline, server, single_stream
from optbench.measure.machine_state import check_environment
from optbench.model.checkpoint import read_body

__all__ = ["REAL_QUERIES", "concurrency_models", "make_batches", "run_scenarios"]

Input: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]

# The first run of a shape grows the arena or plans the kernels; the second shows that it is over.
WARM_RUNS = 2
# Distinct inputs of a fixed length, so that no run finds exactly the last one's rows in the cache.
DISTINCT_INPUTS = 8
# Without a limit from the user: room for a query to find a few others before it, or to run on one core of a few.
LIMIT_OF_SINGLE_P99 = 4.0


def concurrency_models(engine: Engine) -> tuple[Concurrency, ...]:
    """Both ways to use the threads that `engine` asks for, or that this process may use; one where that is a single thread."""
    threads = engine.threads or usable_threads()
    one = Concurrency(name="one_session", sessions=1, engine=engine)
    if threads == 1:
        return (one,)
    changes: dict[str, Any] = {"threads": 1}
    if isinstance(engine, OpenVino) and engine.enable_cpu_pinning is None:
        # A compiled model pins its threads without a look at the others in the process: two may share a core.
        changes["enable_cpu_pinning"] = False
    return (one, Concurrency(name="many_sessions", sessions=threads, engine=engine.model_copy(update=changes)))


def make_batches(rows: Sequence[NDArray[np.int64]], batch: int, pad_id: int) -> list[Input]:
    """Sort texts by length, longest first, and pad each `batch` of them to its longest.

    Args:
        rows: token ids of each text, (tokens,).
        batch: texts a batch; the last may hold fewer.
        pad_id: what fills the rest.

    Returns:
        input_ids and attention_mask of each batch, (batch, tokens of its longest) int64.
    """
    ordered = sorted(rows, key=len, reverse=True)
    batches = []
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        ids = np.full((len(part), len(part[0])), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(part):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        batches.append((ids, mask))
    return batches


class _Service:
    """The sessions of one concurrency model, opened and warm."""

    def __init__(self, payload: Mapping[str, Any], progress: Progress) -> None:
        engine: Engine = TypeAdapter(Engine).validate_python(payload["engine"])
        artifact = Artifact(Kind(payload["kind"]), Path(payload["path"]), payload["sha256"])
        begin_ns = time.perf_counter_ns()
        self._servers = [partial(_embed, engine.open(artifact)) for _ in range(payload["sessions"])]
        self.load_ms = (time.perf_counter_ns() - begin_ns) / 1e6
        self._pad_id = read_body(artifact.path).pad_id
        self._rows = {name: [np.array(row, dtype=np.int64) for row in rows] for name, rows in payload["workloads"].items()}
        self._pools = {name: [_single(row) for row in rows] for name, rows in self._rows.items()}
        self._clock = SystemClock()
        self._progress = progress
        progress("warm-up", None)
        self._warm_shapes([each for pool in self._pools.values() for each in pool])
        real = sorted(self._pools[REAL_QUERIES], key=lambda each: each[0].shape)
        run_in_threads([partial(_warm_until_stable, serve, real[len(real) // 2]) for serve in self._servers])
        self._mean_ns = math.nan

    def _warm_shapes(self, inputs: Sequence[Input]) -> None:
        shapes = list({each[0].shape: each for each in inputs}.values())

        def run(serve: Callable[[Input], None]) -> None:
            for each in shapes:
                for _ in range(WARM_RUNS):
                    serve(each)

        run_in_threads([partial(run, serve) for serve in self._servers])

    def single_stream(self, workload: str, seconds: float) -> SingleStream:
        result = single_stream(self._servers[0], self._pools[workload], seconds, self._clock)
        if workload == REAL_QUERIES:
            self._mean_ns = result.latency.mean_ns
        return result

    def server(self, rate: float, seconds: float) -> ServerRun:
        return server(self._servers, self._pools[REAL_QUERIES], rate, seconds, self._clock)

    def highest_rate(self, limit_ms: float, seconds: float) -> HighestRate:
        # To begin with: what the sessions would serve if they never idled and did not slow each other down.
        first_rate = len(self._servers) / self._mean_ns * 1e9
        pool = self._pools[REAL_QUERIES]
        return highest_rate(self._servers, pool, limit_ms, seconds, self._clock, first_rate=first_rate, progress=self._progress)

    def offline(self, batch: int, seconds: float) -> Offline:
        # As many texts as take so long one by one; two batches for every worker at least.
        workers = len(self._servers)
        n_texts = max(2 * batch * workers, round(seconds * workers / self._mean_ns * 1e9))
        batches = make_batches(draw_queries(self._rows[REAL_QUERIES], n_texts, seed=0), batch, self._pad_id)
        self._warm_shapes(batches)
        return offline(self._servers, batches, n_texts, batch, self._clock)


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
    """The child's side: open the sessions, warm them, then run one scenario a request. The first must be a single stream."""
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
    artifact: Artifact,
    engine: Engine,
    queries_token_ids: Sequence[NDArray[np.int64]],
    *,
    rate: float | None = None,
    limit_ms: float | None = None,
    seconds: float = 10.0,
    lengths: Sequence[int] = (),
    batches: Sequence[int] = (1, 8, 32),
    isa: Isa | None = None,
    progress: Progress = silent,
) -> ScenarioReport:
    """Run all scenarios under both concurrency models, one process after the other.

    It takes about 10 to 20 times `seconds` a model, most of it the search for the highest rate. many_sessions opens the artifact
    once a thread: what an engine does not map, it holds as often.

    Args:
        artifact: what to run.
        engine: what runs it.
        queries_token_ids: the task's real queries with their prompt, (tokens,) each.
        rate: queries per second to run the server scenario at, beside the search.
        limit_ms: of p99 in the search; LIMIT_OF_SINGLE_P99 times that of one_session's single stream when left out.
        seconds: of each run; one at a low rate lasts longer, until there are enough queries for a p99.
        lengths: fixed token lengths to run the single stream at, too.
        batches: batch sizes of the offline scenario.
        isa: run as a CPU with this instruction set would.
        progress: called with a phrase and the share done.

    Raises:
        MeasureError: no queries, an empty one, or a rate, limit, length, batch or duration that is not positive.
        EngineError: the engine cannot open the artifact, or cannot be held to `isa`.
        MachineError: a process was killed, usually for want of memory.
    """
    _check({"rate": rate, "limit_ms": limit_ms, "seconds": seconds}, lengths, batches)
    workloads = _workloads(artifact, queries_token_ids, lengths)
    models = concurrency_models(engine)
    disturbances = check_environment()
    results: list[ConcurrencyResult] = []
    limit = limit_ms or 0.0
    for index, model in enumerate(models):
        payload = {
            "kind": artifact.kind,
            "path": str(artifact.path),
            "sha256": artifact.sha256,
            "engine": model.engine.model_dump(mode="json"),
            "sessions": model.sessions,
            "workloads": workloads,
        }
        with Worker(serve_scenarios, payload, model.engine.environment(isa) if isa else None) as worker:
            ask = partial(_ask, worker, progress, model.name, index, len(models), seconds)
            load_ms = ask("open", 0.0)
            single = {name: SingleStream.model_validate(ask("single stream", 0.1, workload=name)) for name in workloads}
            limit = limit or LIMIT_OF_SINGLE_P99 * single[REAL_QUERIES].latency.p99_ns.point / 1e6
            results.append(
                ConcurrencyResult(
                    concurrency=model,
                    load_ms=load_ms,
                    single_stream=single,
                    highest=HighestRate.model_validate(ask("highest rate", 0.2, limit_ms=limit)),
                    server=None if rate is None else ServerRun.model_validate(ask("server", 0.8, rate=rate)),
                    offline=tuple(Offline.model_validate(ask("offline", 0.9, batch=batch)) for batch in batches),
                    memory=MemorySample.model_validate(ask("memory", 1.0)),
                )
            )
    return ScenarioReport(
        artifact_sha256=artifact.sha256,
        engine=engine.model_dump(mode="json"),
        tokens=tuple(sorted(map(len, queries_token_ids))),
        seconds=seconds,
        limit_ms=limit,
        limit_given=limit_ms is not None,
        models=tuple(results),
        serves_more=serves_more(results),
        notes=(*disturbances, *scenario_notes(results, engine)),
    )


# The share of a model's time that the search takes: the one request that reports its own progress.
SEARCH_SHARE = 0.6


def _ask(
    worker: Worker, progress: Progress, name: str, index: int, n_models: int, seconds: float, do: str, begin: float, **more: Any
) -> Any:
    def tell(message: str, share: float | None) -> None:
        progress(f"{name}: {message}", (index + begin + SEARCH_SHARE * (share or 0.0)) / n_models)

    tell(do, None)
    return worker.request({"do": do, "seconds": seconds, **more}, tell)


def _check(positive: Mapping[str, float | None], lengths: Sequence[int], batches: Sequence[int]) -> None:
    for name, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise MeasureError(f"scenarios: {name} is {value:g}; a number above 0 is wanted")
    for name, sizes in (("lengths", lengths), ("batches", batches)):
        if any(size < 1 for size in sizes):
            raise MeasureError(f"scenarios: {name} {' '.join(map(str, sizes))}; each must be at least 1")


def _workloads(artifact: Artifact, queries: Sequence[NDArray[np.int64]], lengths: Sequence[int]) -> dict[str, list[list[int]]]:
    """Token ids by workload: the real queries, and seeded random ones of each fixed length."""
    wrong = [
        f"queries_token_ids[{index}] has shape {np.shape(row)}" for index, row in enumerate(queries) if np.ndim(row) != 1 or not len(row)
    ]
    if wrong or not queries:
        found = wrong[0] if wrong else "no queries"
        raise MeasureError(f"scenarios: {found}; at least one query is wanted, each with its token ids in one dimension, without padding")
    workloads = {REAL_QUERIES: [np.asarray(row).tolist() for row in queries]}
    vocabulary = read_body(artifact.path).vocabulary
    for length in lengths:
        drawn = np.random.default_rng(length).integers(min(5, vocabulary - 1), vocabulary, (DISTINCT_INPUTS, length))
        workloads[f"{length} tokens"] = drawn.tolist()
    return workloads
