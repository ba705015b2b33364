"""MLPerf's scenarios: single stream, server, offline.

Nothing here depends on an engine: a server is a function that returns when its query is answered, and time is a `Clock`.
`concurrency.py` opens the sessions. The scenarios' names and load are MLPerf's, but these are not MLPerf results: MLPerf runs each
scenario for 600 seconds, with fixed models and data.

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
from optbench.measure.load.arrivals import Clock, ServerPool, collector_paused, draw_queries, poisson_arrivals, serve_arrivals
from optbench.measure.statistics import Interval, percentile_interval

__all__ = [
    "HighestRate",
    "Latencies",
    "Offline",
    "RateTrial",
    "ServerRun",
    "SingleStream",
    "highest_rate",
    "mlperf_queries",
    "offline",
    "server",
    "single_stream",
]

Query = TypeVar("Query")

# Raw samples that a result keeps: minutes of a small model have millions.
SAMPLES_KEPT = 10_000
# Fewer queries have no p99.
QUERIES_MIN = 100
# A queue is served for this share of the run's length after the last arrival; what is left shows overload.
PATIENCE_SHARE = 1.0
# The search ends when the lowest failed rate is within this share of the highest held rate, ...
RESOLUTION = 0.02
# ... or after this many runs, ...
TRIALS_MAX = 14
# ... or when this share of the first rate fails too: even a single query is then too slow, or nearly.
LOWEST_SHARE = 1 / 64
# A run lasts at least this many limits. Above capacity the queue keeps growing, but in a short run not past the limit: with 50, a
# held rate exceeds the capacity by at most 2 %, the search's resolution.
LIMITS_IN_A_RUN = 50


class Latencies(Frozen):
    """Latencies of one run, in nanoseconds.

    Queries in one queue are not independent: in the server scenario the intervals are too narrow, more so at a high load.

    Attributes:
        p90_ns: MLPerf's metric of the single stream.
        p99_ns: MLPerf's metric of the server. `bounded` is false if there are too few queries for its interval.
        samples_ns: raw, in order of arrival; thinned evenly to at most SAMPLES_KEPT.
    """

    n: int
    mean_ns: float
    p50_ns: Interval
    p90_ns: Interval
    p99_ns: Interval
    samples_ns: tuple[int, ...]

    @classmethod
    def of(cls, latencies_ns: NDArray[np.int64]) -> Self:
        """Summarize (queries,) nanoseconds of at least one query."""
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


class SingleStream(Frozen):
    """One query after another: the next is sent when the previous one is answered."""

    latency: Latencies


class ServerRun(Frozen):
    """Queries at a given rate, whether or not earlier ones are answered.

    Attributes:
        rate: queries per second, the parameter of the Poisson process.
        served_per_second: queries answered over the time from the first arrival to the last answer.
        n_unserved: queries still in the queue at the end; they count with their wait until then.
        abandoned: ended early because p99 was certain to exceed the limit.
        latency: from scheduled arrival to answer.
    """

    rate: float
    served_per_second: float
    n_unserved: int
    abandoned: bool
    latency: Latencies

    def holds(self, limit_ms: float) -> bool:
        """Whether p99 is within the limit and every query was answered."""
        return not self.abandoned and not self.n_unserved and self.latency.p99_ns.point <= limit_ms * 1e6


class RateTrial(Frozen):
    """One run of the search at one rate; the p99 of an abandoned run is of the queries that had arrived."""

    rate: float
    n: int
    p99_ms: float
    held: bool


class HighestRate(Frozen):
    """The highest rate of the server scenario with p99 within a limit.

    Attributes:
        rate: the highest rate that held; 0 if none did.
        failed_rate: the lowest rate above it that failed; None if none did.
        converged: the two are within RESOLUTION.
        run: the run at `rate`; None if no rate held.
        probes: all runs of the search, in order.
    """

    limit_ms: float
    rate: float
    failed_rate: float | None
    converged: bool
    run: ServerRun | None
    probes: tuple[RateTrial, ...]


class Offline(Frozen):
    """All texts at once, longest first, in batches of similar length; the rate is that of all servers together."""

    batch: int
    n_texts: int
    texts_per_second: float
    seconds: float


def mlperf_queries(q: float) -> int:
    """The number of queries that MLPerf requires for percentile `q`: 24,576 for 90 and 270,336 for 99.

    It estimates the percentile to a twentieth of its tail with 99 % confidence, rounded up to a multiple of 2^13. (MLPerf has since
    allowed early stopping, with a p99 that is raised accordingly; our interval has the same purpose.)

    Source: mlcommons/inference_policies, inference_rules.adoc, appendix "Number of Queries".
    """
    tail = 1 - q / 100
    margin = tail / 20
    z = NormalDist().inv_cdf(1 - 0.01 / 2)
    return math.ceil(z * z * tail * (1 - tail) / margin**2 / 2**13) * 2**13


def single_stream(serve: Callable[[Query], None], queries: Sequence[Query], seconds: float, clock: Clock, *, seed: int = 0) -> SingleStream:
    """Send queries, drawn with replacement, one after another to a warm server for `seconds`, and at least QUERIES_MIN."""
    drawn = draw_queries(queries, max(QUERIES_MIN, min(4096, 16 * len(queries))), seed)
    latencies: list[int] = []
    with collector_paused():
        begin_ns = now_ns = clock.now_ns()
        end_ns = begin_ns + round(seconds * 1e9)
        while now_ns < end_ns or len(latencies) < QUERIES_MIN:
            query = drawn[len(latencies) % len(drawn)]
            begin_ns = clock.now_ns()
            serve(query)
            now_ns = clock.now_ns()
            latencies.append(now_ns - begin_ns)
    return SingleStream(latency=Latencies.of(np.array(latencies)))


def server(
    pool: ServerPool[Query],
    queries: Sequence[Query],
    rate: float,
    seconds: float,
    *,
    limit_ms: float | None = None,
    seed: int = 0,
) -> ServerRun:
    """Send queries as a Poisson process, in an open loop, to servers behind one queue, which starts empty.

    Queries are drawn with replacement. They arrive at `rate` per second for `seconds`, and at least until QUERIES_MIN have; the queue
    is then served for as long again. With `limit_ms`, the run stops as soon as p99 is certain to exceed it.

    Raises:
        MeasureError: a rate or a duration that is not positive.
    """
    if not (0 < rate < math.inf and 0 < seconds < math.inf):
        raise MeasureError(f"server: {rate:g} queries per second for {seconds:g} s; both must be above 0")
    n = max(QUERIES_MIN, round(rate * seconds))
    arrivals_ns = poisson_arrivals(rate, n, seed)
    served = serve_arrivals(
        pool,
        draw_queries(queries, n, seed),
        arrivals_ns,
        patience_ns=round(PATIENCE_SHARE * float(arrivals_ns[-1])),
        late_ns=None if limit_ms is None else round(limit_ms * 1e6),
        # One more than a hundredth: the percentile is interpolated between two samples.
        late_max=n // 100 + 1,
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
    pool: ServerPool[Query],
    queries: Sequence[Query],
    limit_ms: float,
    seconds: float,
    *,
    first_rate: float,
    progress: Progress = silent,
) -> HighestRate:
    """Find the highest rate with p99 within the limit.

    The rate doubles from `first_rate`, ideally near the capacity, until one fails; then bisection narrows the gap between the highest
    held and the lowest failed rate to RESOLUTION. TRIALS_MAX and LOWEST_SHARE bound the search. All runs have the same queries and, up
    to the rate, the same arrivals. Each takes `seconds`, and at least LIMITS_IN_A_RUN times the limit.

    Raises:
        MeasureError: a limit, rate or duration that is not positive.
    """
    if not 0 < limit_ms < math.inf:
        raise MeasureError(f"highest rate: found a limit of {limit_ms:g} ms; expected one above 0")
    seconds = max(seconds, LIMITS_IN_A_RUN * limit_ms / 1e3)
    best: ServerRun | None = None
    held, failed = 0.0, math.inf
    rate = first_rate
    trials: list[RateTrial] = []
    while len(trials) < TRIALS_MAX and failed > held * (1 + RESOLUTION) and failed > first_rate * LOWEST_SHARE:
        progress(f"server at {rate:.4g} queries per second", len(trials) / TRIALS_MAX)
        run = server(pool, queries, rate, seconds, limit_ms=limit_ms)
        if run.holds(limit_ms):
            held, best = rate, run
        else:
            failed = rate
        trials.append(RateTrial(rate=rate, n=run.latency.n, p99_ms=run.latency.p99_ns.point / 1e6, held=run is best))
        rate = 2 * held if failed == math.inf else (held + failed) / 2
    return HighestRate(
        limit_ms=limit_ms,
        rate=held,
        failed_rate=None if failed == math.inf else failed,
        converged=held > 0 and failed <= held * (1 + RESOLUTION),
        run=best,
        probes=tuple(trials),
    )


def offline(pool: ServerPool[Query], batches: Sequence[Query], n_texts: int, batch: int) -> Offline:
    """Serve all batches as fast as possible. The longest texts come first, so that the last batches are the fastest."""
    served = serve_arrivals(pool, batches, np.zeros(len(batches), dtype=np.int64))
    # All arrive at the start, so the longest latency is the total time.
    seconds = int(served.latencies_ns.max()) / 1e9
    return Offline(batch=batch, n_texts=n_texts, texts_per_second=n_texts / seconds, seconds=seconds)
