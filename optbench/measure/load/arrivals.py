"""Queries that arrive when they please, and the workers that serve them: an open loop with one queue in front.

The schedule is drawn before the run and is the queue: a worker that is free takes the next query of the schedule and, if it
has not arrived yet, waits for it. That is first come, first served for any number of workers, with no dispatcher thread to
compete for the cores. Latency counts from the scheduled arrival, so a worker that is busy or wakes up late delays nobody's
clock: what the literature calls coordinated omission cannot happen.

Source: Schroeder, Wierman and Harchol-Balter 2006, "Open Versus Closed: A Cautionary Tale", NSDI; Tene 2013, "How NOT to
Measure Latency".
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from optbench.errors import MeasureError

__all__ = [
    "Clock",
    "RunAll",
    "Served",
    "SystemClock",
    "collector_paused",
    "draw_queries",
    "poisson_arrivals",
    "run_in_threads",
    "serve_arrivals",
]

Query = TypeVar("Query")
RunAll = Callable[[Sequence[Callable[[], None]]], None]
"""Runs functions side by side and returns when all are done."""

# Threads that are being started do not make the first queries late.
LEAD_NS = 5_000_000


class Clock(Protocol):
    """The time, and a way to let it pass. Tests bring one of their own."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment in the past."""

    def wait_until(self, moment_ns: int) -> None:
        """Return at `moment_ns` of this clock, or soon after it; at once where it has passed."""


class SystemClock:
    """The machine's monotonic clock. It waits asleep, as an idle service does; waking up takes some 50 microseconds."""

    def now_ns(self) -> int:
        """`time.perf_counter_ns`."""
        return time.perf_counter_ns()

    def wait_until(self, moment_ns: int) -> None:
        """Sleep."""
        while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
            time.sleep(left_ns / 1e9)


@dataclass(frozen=True)
class Served:
    """What became of a schedule.

    Attributes:
        latencies_ns: from scheduled arrival to answer, of every query that arrived before the end, in the order of arrival.
            One that was never answered counts with its wait up to the end: a lower bound.
        elapsed_ns: from the start of the schedule to the end.
        n_unserved: queries that arrived and were never answered.
        abandoned: stopped before its time, because too many queries were late already.
    """

    latencies_ns: NDArray[np.int64]
    elapsed_ns: int
    n_unserved: int
    abandoned: bool


def poisson_arrivals(rate: float, n: int, seed: int) -> NDArray[np.int64]:
    """Arrival times of a Poisson process.

    The same seed gives the same gaps in units of 1 / rate, whatever the rate, and fewer arrivals are the first of more: runs
    at two rates differ by the rate alone.

    Args:
        rate: arrivals per second, above 0.
        n: how many.
        seed: of the gaps.

    Returns:
        (n,) nanoseconds from the start, ascending.
    """
    gaps = np.random.default_rng(seed).standard_exponential(n)
    return np.asarray(np.cumsum(gaps) / rate * 1e9, dtype=np.int64)


def draw_queries(pool: Sequence[Query], n: int, seed: int) -> list[Query]:
    """`n` queries drawn from the pool with replacement; the same seed draws the same, and fewer are the first of more."""
    # The schedule has a stream of its own: gaps and lengths must not go together.
    generator = np.random.default_rng([seed, 1])
    return [pool[index] for index in generator.integers(len(pool), size=n).tolist()]


def run_in_threads(functions: Sequence[Callable[[], None]]) -> None:
    """Run each function in a thread of its own; a single one in the caller's, whose OpenMP pool is warm already.

    Raises:
        Exception: what the first function that failed raised, when all have ended.
    """
    if len(functions) == 1:
        functions[0]()
        return
    with ThreadPoolExecutor(len(functions)) as pool:
        running = [pool.submit(function) for function in functions]
    for each in running:
        each.result()


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside: it stops the world for longer than a small model takes."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def serve_arrivals(
    servers: Sequence[Callable[[Query], None]],
    queries: Sequence[Query],
    arrivals_ns: NDArray[np.int64],
    clock: Clock,
    *,
    patience_ns: int | None = None,
    late_ns: int | None = None,
    late_max: int = 0,
    run_all: RunAll = run_in_threads,
) -> Served:
    """Serve queries in the order of their arrival, each by the first worker that is free.

    Args:
        servers: one function a worker, called by that worker alone; it returns when the query is answered.
        queries: one an arrival.
        arrivals_ns: (queries,) nanoseconds from the start, ascending.
        clock: tells the time and waits.
        patience_ns: how long after the last arrival the queue may still be worked off; until it is empty when left out.
        late_ns: a query that takes longer is late.
        late_max: late queries beyond this number end the run.
        run_all: runs the workers.

    Raises:
        MeasureError: no workers, no queries, or as many arrivals as there are not queries.
        Exception: whatever a server raises; it ends the run.
    """
    if not servers or not queries or len(queries) != len(arrivals_ns):
        raise MeasureError(
            f"serving: {len(servers)} workers, {len(queries)} queries and {len(arrivals_ns)} arrivals; "
            "at least one worker and one query are wanted, and an arrival for each query"
        )
    start_ns = clock.now_ns() + LEAD_NS
    due = (arrivals_ns + start_ns).tolist()
    done = [0] * len(due)
    late = [0] * len(servers)
    close_ns = None if patience_ns is None else due[-1] + patience_ns
    stop = threading.Event()
    abandoned = threading.Event()
    # next() on a range's iterator is one step under the interpreter's lock: no query is taken twice.
    tickets = iter(range(len(due)))

    def work(worker: int, serve: Callable[[Query], None]) -> None:
        for index in tickets:
            due_ns = due[index]
            now_ns = clock.now_ns()
            if now_ns < due_ns:
                clock.wait_until(due_ns)
            elif close_ns is not None and now_ns > close_ns:
                return
            if stop.is_set():
                return
            try:
                serve(queries[index])
            except BaseException:
                stop.set()
                raise
            done[index] = now_ns = clock.now_ns()
            if late_ns is not None and now_ns - due_ns > late_ns:
                late[worker] += 1
                if sum(late) > late_max:
                    abandoned.set()
                    stop.set()

    with collector_paused():
        run_all([partial(work, worker, serve) for worker, serve in enumerate(servers)])
    end_ns = clock.now_ns()
    due_at, done_at = np.array(due), np.array(done)
    unserved = done_at == 0
    latencies_ns = np.where(unserved, end_ns, done_at) - due_at
    arrived = ~unserved | (latencies_ns >= 0)
    return Served(
        latencies_ns=latencies_ns[arrived],
        elapsed_ns=end_ns - start_ns,
        n_unserved=int(unserved[arrived].sum()),
        abandoned=abandoned.is_set(),
    )
