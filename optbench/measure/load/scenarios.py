"""Latency as services see it, under MLPerf's names: single stream, server, offline.

Nothing here knows an engine: a worker is a function that returns when its query is answered, and time is a `Clock`. What opens
sessions and puts figures side by side is `concurrency.py`. The names and the load are MLPerf's; its trademark rules ask to
add that these are not MLPerf results: MLPerf runs each scenario for 600 seconds, with fixed models and data.

Source: Reddi et al. 2020, "MLPerf Inference Benchmark", arXiv:1911.02549, section 4; mlcommons/inference_policies,
inference_rules.adoc.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from optbench.errors import MeasureError
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.measure.load.arrivals import Clock, RunAll, collector_paused, draw_queries, poisson_arrivals, run_in_threads, serve_arrivals
from optbench.measure.statistics import Interval, percentile_interval

__all__ = [
    "HighestRate",
    "Latencies",
    "Offline",
    "Probe",
    "ServerRun",
    "SingleStream",
    "highest_rate",
    "mlperf_queries",
    "offline",
    "server",
    "single_stream",
]

Query = TypeVar("Query")

# What a result keeps of its raw samples: a run of minutes over a small model has millions.
SAMPLES_KEPT = 10_000
# Fewer say nothing of a p99.
QUERIES_MIN = 100
# Longer queues than this share of the run are not worked off to the end: the service is overloaded, and the result says so.
PATIENCE_SHARE = 1.0
# The search ends when the lowest rate that failed is within this share of the highest that held, ...
RESOLUTION = 0.02
# ... or after so many runs, ...
PROBES_MAX = 14
# ... or when this share of the first rate fails too: a query alone is then too slow, or nearly.
LOWEST_SHARE = 1 / 64
# A run lasts so many limits at least. A rate above what can be served makes the queue longer all the time, and in a short run
# it does not grow past the limit: with 50, a rate held is at most 2 % above it, which is the search's resolution.
LIMITS_IN_A_RUN = 50


class Latencies(Frozen):
    """Latencies of one run, in nanoseconds.

    Queries that wait in one queue are not independent: under the server scenario the intervals are narrower than they should
    be, the more so the higher the load.

    Attributes:
        n: queries.
        mean_ns: their mean.
        p50_ns: the median.
        p90_ns: MLPerf's figure for the single stream.
        p99_ns: MLPerf's figure for the server. `bounded` is false where there are too few queries for its interval.
        samples_ns: raw, in the order of arrival; evenly thinned out where there are more than SAMPLES_KEPT.
    """

    n: int
    mean_ns: float
    p50_ns: Interval
    p90_ns: Interval
    p99_ns: Interval
    samples_ns: tuple[int, ...]

    @classmethod
    def of(cls, latencies_ns: NDArray[np.int64]) -> Self:
        """Summarize (queries,) nanoseconds.

        Raises:
            MeasureError: no queries.
        """
        p50, p90, p99 = (percentile_interval(latencies_ns, q) for q in (50, 90, 99))
        kept = latencies_ns[:: math.ceil(len(latencies_ns) / SAMPLES_KEPT)]
        return cls(
            n=len(latencies_ns),
            mean_ns=float(latencies_ns.mean()),
            p50_ns=p50,
            p90_ns=p90,
            p99_ns=p99,
            samples_ns=tuple(kept.tolist()),
        )

    @property
    def enough_for_mlperf(self) -> bool:
        """Whether MLPerf's guide would take a p99 from so many queries."""
        return self.n >= mlperf_queries(99)


class SingleStream(Frozen):
    """One query after another: the next is sent when the last is answered."""

    latency: Latencies


class ServerRun(Frozen):
    """Queries at a rate that does not wait for answers.

    Attributes:
        rate: queries per second, the parameter of the Poisson process.
        served_per_second: queries answered over the time from the first arrival to the last answer.
        n_unserved: queries still in the queue when the run was ended; they count with their wait so far.
        abandoned: ended early because its p99 was over the limit whatever came.
        latency: from scheduled arrival to answer.
    """

    rate: float
    served_per_second: float
    n_unserved: int
    abandoned: bool
    latency: Latencies

    def holds(self, limit_ms: float) -> bool:
        """Whether p99 kept the limit and every query was answered."""
        return not self.abandoned and not self.n_unserved and self.latency.p99_ns.point <= limit_ms * 1e6


class Probe(Frozen):
    """One step of the search; the p99 of an abandoned run is that of the queries that had arrived."""

    rate: float
    n: int
    p99_ms: float
    held: bool


class HighestRate(Frozen):
    """The highest rate of the server scenario whose p99 keeps a limit.

    Attributes:
        limit_ms: the limit.
        rate: the highest rate that held; 0 where none did.
        failed_rate: the lowest rate above it that did not hold; None where all held.
        converged: the two are within RESOLUTION.
        run: the run at `rate`.
        probes: all runs, in the order they were made.
    """

    limit_ms: float
    rate: float
    failed_rate: float | None
    converged: bool
    run: ServerRun | None
    probes: tuple[Probe, ...]


class Offline(Frozen):
    """All texts at once, longest first, in batches of like length.

    Attributes:
        batch: texts a batch.
        n_texts: texts in all.
        texts_per_second: over all workers.
        seconds: what it took.
    """

    batch: int
    n_texts: int
    texts_per_second: float
    seconds: float


def mlperf_queries(q: float) -> int:
    """How many queries MLPerf's guide asks for, for percentile `q`: 24,576 for 90 and 270,336 for 99.

    So many put the percentile within a twentieth of its tail with 99 % confidence, rounded up to a multiple of 2^13. (MLPerf has
    since let runs stop early, at a p99 that is raised to make up for it; our interval says the same in another way.)

    Source: mlcommons/inference_policies, inference_rules.adoc, appendix "Number of Queries".
    """
    tail = 1 - q / 100
    margin = tail / 20
    z = NormalDist().inv_cdf(1 - 0.01 / 2)
    return math.ceil(z * z * tail * (1 - tail) / margin**2 / 2**13) * 2**13


def single_stream(serve: Callable[[Query], None], pool: Sequence[Query], seconds: float, clock: Clock, *, seed: int = 0) -> SingleStream:
    """Send queries one after another for some seconds, and QUERIES_MIN at least.

    Args:
        serve: returns when the query is answered; warm.
        pool: queries are drawn from it.
        seconds: how long.
        clock: tells the time.
        seed: of the draw.
    """
    queries = draw_queries(pool, max(QUERIES_MIN, min(4096, 16 * len(pool))), seed)
    latencies: list[int] = []
    with collector_paused():
        begin_ns = now_ns = clock.now_ns()
        end_ns = begin_ns + round(seconds * 1e9)
        while now_ns < end_ns or len(latencies) < QUERIES_MIN:
            query = queries[len(latencies) % len(queries)]
            begin_ns = clock.now_ns()
            serve(query)
            now_ns = clock.now_ns()
            latencies.append(now_ns - begin_ns)
    return SingleStream(latency=Latencies.of(np.array(latencies)))


def server(
    servers: Sequence[Callable[[Query], None]],
    pool: Sequence[Query],
    rate: float,
    seconds: float,
    clock: Clock,
    *,
    limit_ms: float | None = None,
    seed: int = 0,
    run_all: RunAll = run_in_threads,
) -> ServerRun:
    """Send queries as a Poisson process, in an open loop, to workers behind one queue. It begins empty.

    Args:
        servers: one function a worker; warm.
        pool: queries are drawn from it.
        rate: queries per second.
        seconds: how long queries arrive, if that makes QUERIES_MIN; where the queue is longer than that at the end, it is cut off.
        clock: tells the time and waits.
        limit_ms: give up as soon as p99 is over it whatever comes.
        seed: of the arrivals and the draw.
        run_all: runs the workers.

    Raises:
        MeasureError: a rate or a duration that is not positive.
    """
    if not (0 < rate < math.inf and 0 < seconds < math.inf):
        raise MeasureError(f"server: {rate:g} queries per second for {seconds:g} s; both must be above 0")
    n = max(QUERIES_MIN, round(rate * seconds))
    arrivals_ns = poisson_arrivals(rate, n, seed)
    served = serve_arrivals(
        servers,
        draw_queries(pool, n, seed),
        arrivals_ns,
        clock,
        patience_ns=round(PATIENCE_SHARE * float(arrivals_ns[-1])),
        late_ns=None if limit_ms is None else round(limit_ms * 1e6),
        # One more than a hundredth, because the percentile is interpolated between two samples.
        late_max=n // 100 + 1,
        run_all=run_all,
    )
    answered = len(served.latencies_ns) - served.n_unserved
    return ServerRun(
        rate=rate,
        served_per_second=answered / (served.elapsed_ns / 1e9),
        n_unserved=served.n_unserved,
        abandoned=served.abandoned,
        latency=Latencies.of(served.latencies_ns),
    )


def highest_rate(
    servers: Sequence[Callable[[Query], None]],
    pool: Sequence[Query],
    limit_ms: float,
    seconds: float,
    clock: Clock,
    *,
    first_rate: float,
    seed: int = 0,
    run_all: RunAll = run_in_threads,
    progress: Progress = silent,
) -> HighestRate:
    """Find the highest rate whose p99 keeps the limit.

    The rate is doubled from `first_rate` until one fails, then the gap between the highest that held and the lowest that failed
    is halved until it is within RESOLUTION of the former; PROBES_MAX and LOWEST_SHARE end it otherwise. All runs have the same
    arrivals but for the rate, so that luck does not decide between two of them.

    Args:
        servers: one function a worker; warm.
        pool: queries are drawn from it.
        limit_ms: p99 must not be above it.
        seconds: of each run; LIMITS_IN_A_RUN times the limit at least.
        clock: tells the time and waits.
        first_rate: queries per second to begin with: best about what the workers can serve at all.
        seed: of the arrivals and the draw.
        run_all: runs the workers.
        progress: called with a phrase and the share done.

    Raises:
        MeasureError: a limit, rate or duration that is not positive.
    """
    if not 0 < limit_ms < math.inf:
        raise MeasureError(f"highest rate: a limit of {limit_ms:g} ms; it must be above 0")
    seconds = max(seconds, LIMITS_IN_A_RUN * limit_ms / 1e3)
    best: ServerRun | None = None
    held, failed = 0.0, math.inf
    rate = first_rate
    probes: list[Probe] = []
    while len(probes) < PROBES_MAX and failed > held * (1 + RESOLUTION) and failed > first_rate * LOWEST_SHARE:
        progress(f"server at {rate:.4g} queries per second", len(probes) / PROBES_MAX)
        run = server(servers, pool, rate, seconds, clock, limit_ms=limit_ms, seed=seed, run_all=run_all)
        if run.holds(limit_ms):
            held, best = rate, run
        else:
            failed = rate
        probes.append(Probe(rate=rate, n=run.latency.n, p99_ms=run.latency.p99_ns.point / 1e6, held=run is best))
        rate = 2 * held if failed == math.inf else (held + failed) / 2
    return HighestRate(
        limit_ms=limit_ms,
        rate=held,
        failed_rate=None if failed == math.inf else failed,
        converged=held > 0 and failed <= held * (1 + RESOLUTION),
        run=best,
        probes=tuple(probes),
    )


def offline(
    servers: Sequence[Callable[[Query], None]],
    batches: Sequence[Query],
    n_texts: int,
    batch: int,
    clock: Clock,
    *,
    run_all: RunAll = run_in_threads,
) -> Offline:
    """Serve all batches as fast as the workers can.

    Args:
        servers: one function a worker; warm.
        batches: longest texts first, so that no worker is left with the largest piece at the end.
        n_texts: how many texts they hold.
        batch: texts a batch.
        clock: tells the time.
        run_all: runs the workers.
    """
    served = serve_arrivals(servers, batches, np.zeros(len(batches), dtype=np.int64), clock, run_all=run_all)
    # All arrive at the start, so the longest latency is the whole.
    seconds = int(served.latencies_ns.max()) / 1e9
    return Offline(batch=batch, n_texts=n_texts, texts_per_second=n_texts / seconds, seconds=seconds)
