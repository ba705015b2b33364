"""The results of the scenarios for each concurrency model, and their tables."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import JsonValue

from optbench.engines import Engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.machine.frozen import Frozen
from optbench.measure.footprint import MemorySample
from optbench.measure.load.scenarios import HighestRate, Latencies, Offline, ServerRun, SingleStream, mlperf_queries

__all__ = ["REAL_QUERIES", "Concurrency", "ConcurrencyResult", "ScenarioReport", "ScenarioTable", "scenario_notes", "serves_more"]

REAL_QUERIES = "real queries"
"""The name of the workload that the server and offline scenarios run on."""
# Models are not interleaved: two rates closer than this are a tie.
TIE_SHARE = 0.05

ModelName = Literal["one_session", "many_sessions", "batched"]


class Concurrency(Frozen):
    """A way to distribute an engine over the cores.

    Attributes:
        name: `one_session`: one session on all threads; `many_sessions`: single-threaded sessions, all fed by one queue; `batched`: one
            session that runs concurrent queries in common batches, as `AsyncEncoder` does.
        sessions: how many, each with a thread of its own.
        engine: with the threads of one session.
        batch_delay_ms: how long a query waits for others to share its batch; None where each query runs alone.
    """

    name: ModelName
    sessions: int
    engine: Engine
    batch_delay_ms: float | None = None


class ConcurrencyResult(Frozen):
    """The results of one concurrency model.

    Attributes:
        load_ms: time to open all sessions.
        memory: of the process at the end.
        single_stream: by workload; with many_sessions, the other sessions are idle.
        highest: the highest rate within the report's limit, on real queries.
        server: at the requested rate, on real queries; None if none was requested.
        offline: by batch size, on real queries; empty for `batched`, which forms its batches itself.
    """

    concurrency: Concurrency
    load_ms: float
    memory: MemorySample
    single_stream: dict[str, SingleStream]
    highest: HighestRate
    server: ServerRun | None
    offline: tuple[Offline, ...]


class ScenarioTable(NamedTuple):
    """A table as text: the fields of `report.table.Table`, in its order."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


class ScenarioReport(Frozen):
    """The results of `run_scenarios`.

    Attributes:
        engine: its options as JSON, before threads were split over sessions.
        tokens: of the real queries, sorted.
        seconds: of each run.
        limit_ms: p99 limit of `highest`.
        limit_given: the user set the limit; else it is derived from one_session's single stream.
        models: one_session, many_sessions if there is more than one thread, and batched if a delay was given.
        serves_more: the model with the higher rate at the same p99; None for a tie or a single model.
    """

    artifact_sha256: str
    engine: dict[str, JsonValue]
    tokens: tuple[int, ...]
    seconds: float
    limit_ms: float
    limit_given: bool
    models: tuple[ConcurrencyResult, ...]
    serves_more: ModelName | None
    notes: tuple[str, ...]

    def tables(self) -> list[ScenarioTable]:
        """The tables of single stream, server and offline."""
        single, rates, batches = [], [], []
        for model in self.models:
            name = model.concurrency.name
            single += [[name, workload, *_latency_cells(result.latency)] for workload, result in model.single_stream.items()]
            if model.server is not None:
                rates.append(_server_row(name, "requested", model.server))
            if model.highest.run is None:
                rates.append([name, "highest", "none", *[""] * 6])
            else:
                rates.append(_server_row(name, "highest", model.highest.run))
            batches += [[name, str(each.batch), str(each.n_texts), f"{each.texts_per_second:.1f}"] for each in model.offline]
        queries = f"{len(self.tokens)} real queries of {self.tokens[0]} to {self.tokens[-1]} tokens, drawn at random. {STAR}"
        limit = f"highest: the highest rate with p99 at most {self.limit_ms:.4g} ms. "
        compared = f"{self.serves_more or 'No concurrency model clearly'} serves {'most' if len(self.models) > 2 else 'more'} at that p99. "
        server = f"Latency counts from the scheduled arrival; {limit}{compared if len(self.models) > 1 else ''}{STAR}"
        return [
            ScenarioTable("Single stream", ["model", "workload", *LATENCY_COLUMNS], single, queries),
            ScenarioTable("Server", ["model", "rate", "queries/s", "served/s", *LATENCY_COLUMNS], rates, server),
            ScenarioTable("Offline", ["model", "batch", "texts", "texts/s"], batches, "Texts sorted by length, longest first."),
        ]


LATENCY_COLUMNS = ("p50 ms", "p90 ms", "p99 ms", "95 % of p99", "queries")
STAR = "*: too few queries for an interval, the true p99 may lie above it."


def _latency_cells(latency: Latencies) -> list[str]:
    p99 = latency.p99_ns
    figures = [f"{each.point / 1e6:.3f}" for each in (latency.p50_ns, latency.p90_ns, p99)]
    return [*figures, f"{p99.low / 1e6:.3f}..{p99.high / 1e6:.3f}{'' if p99.bounded else '*'}", str(latency.n)]


def _server_row(name: str, label: str, run: ServerRun) -> list[str]:
    unserved = f" ({run.n_unserved} unserved)" if run.n_unserved else ""
    return [name, label, f"{run.rate:.1f}", f"{run.served_per_second:.1f}{unserved}", *_latency_cells(run.latency)]


def serves_more(models: Sequence[ConcurrencyResult]) -> ModelName | None:
    """The model whose highest rate exceeds the other's by more than the search's resolution and the machine's noise; None for a tie."""
    if len(models) < 2:
        return None
    first, second = sorted(models, key=lambda model: -model.highest.rate)[:2]
    ceiling = second.highest.failed_rate
    if ceiling is None or first.highest.rate <= max(ceiling, second.highest.rate * (1 + TIE_SHARE)):
        return None
    return first.concurrency.name


def scenario_notes(models: Sequence[ConcurrencyResult], engine: Engine) -> tuple[str, ...]:
    """Notes on how to read these figures."""
    notes = [_spinning(engine)]
    fewest = min(result.latency.n for model in models for result in model.single_stream.values())
    for model in models:
        name = model.concurrency.name
        for run in (model.highest.run, model.server):
            if run is not None:
                fewest = min(fewest, run.latency.n)
                if run.n_unserved:
                    notes.append(f"{name}: overloaded at {run.rate:.1f} queries per second; its percentiles are lower bounds")
        if model.highest.run is None:
            last = model.highest.probes[-1]
            alone = model.single_stream[REAL_QUERIES].latency.p99_ns.point / 1e6
            notes.append(
                f"{name}: found no rate with p99 within {model.highest.limit_ms:.4g} ms: at {last.rate:.4g} queries per second it "
                f"was {last.p99_ms:.4g} ms, and {alone:.4g} ms one after another; if that is well below the limit, other programs "
                "used the cores: stop them and measure again"
            )
        elif not model.highest.converged:
            notes.append(f"{name}: the search ended before it converged on the highest rate; run for more seconds")
    if fewest < mlperf_queries(99):
        notes.append(
            f"the shortest run has {fewest} queries, and MLPerf requires {mlperf_queries(99)} for a p99: read it with its interval. "
            "Queries in one queue are not independent, so under load the true interval is wider"
        )
    return tuple(notes)


def _spinning(engine: Engine) -> str:
    """What idle threads do between queries, which affects latency at low rates and the load on the machine."""
    if isinstance(engine, OnnxRuntime):
        if engine.spinning:
            return "onnxruntime's idle threads spin (spinning: true): a query soon after another is faster, and the cores stay busy"
        return "onnxruntime's idle threads sleep (spinning: false): the cores are free between queries, and each query wakes the threads up"
    if isinstance(engine, OpenVino):
        return "openvino's idle threads soon sleep, and it has no option to make them spin: a query after a pause wakes them up"
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    return f"torch's idle threads spin or sleep as OpenMP decides (OMP_WAIT_POLICY: {policy})"
