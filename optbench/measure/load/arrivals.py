"""An open-loop load generator: queries arrive on a schedule, and servers behind one queue answer them.

The schedule is drawn before the run and is the queue: a free server takes the next query and, if it has not arrived yet, waits for
it. That is first come, first served for any number of servers, without a dispatcher thread that competes for the cores. Latency
counts from the scheduled arrival, so there is no coordinated omission.

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
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from optbench.errors import MeasureError

__all__ = [
    "Clock",
    "RunAll",
    "Served",
    "ServerPool",
    "SystemClock",
    "collector_paused",
    "draw_queries",
    "poisson_arrivals",
    "run_in_threads",
    "serve_arrivals",
]

Query = TypeVar("Query")
RunAll = Callable[[Sequence[Callable[[], None]]], None]
"""Runs functions concurrently and returns when all are done."""

# Time to start the threads before the first arrival.
LEAD_NS = 5_000_000


class Clock(Protocol):
    """Tells the time and waits; tests simulate it."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary moment."""

    def wait_until(self, moment_ns: int) -> None:
        """Return at `moment_ns` or soon after; at once if it has passed."""


class SystemClock:
    """The machine's monotonic clock. It sleeps to wait, as an idle service does; waking up takes about 50 microseconds."""

    def now_ns(self) -> int:
        """`time.perf_counter_ns`."""
        return time.perf_counter_ns()

    def wait_until(self, moment_ns: int) -> None:
        """Sleep."""
        while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
            time.sleep(left_ns / 1e9)


@dataclass(frozen=True)
class Served:
    """The result of serving a schedule.

    Attributes:
        latencies_ns: from scheduled arrival to answer, of each query that arrived before the end, in order of arrival. An
            unanswered query counts with its wait until the end: a lower bound.
        elapsed_ns: from the start of the schedule to the end.
        n_unserved: queries that arrived and were not answered.
        abandoned: stopped early because too many queries were late.
    """

    latencies_ns: NDArray[np.int64]
    elapsed_ns: int
    n_unserved: int
    abandoned: bool


def poisson_arrivals(rate: float, n: int, seed: int) -> NDArray[np.int64]:
    """Arrival times of a Poisson process of `rate` arrivals per second.

    The same seed gives the same gaps in units of 1 / rate, and fewer arrivals are a prefix of more: runs at two rates differ only by
    the rate.

    Returns:
        (n,) nanoseconds from the start, ascending.
    """
    gaps = np.random.default_rng(seed).standard_exponential(n)
    return np.asarray(np.cumsum(gaps) / rate * 1e9, dtype=np.int64)


def draw_queries(pool: Sequence[Query], n: int, seed: int) -> list[Query]:
    """Draw `n` queries with replacement; with the same seed, fewer queries are a prefix of more."""
    # A random stream of its own: lengths must not correlate with the schedule's gaps.
    generator = np.random.default_rng([seed, 1])
    return [pool[index] for index in generator.integers(len(pool), size=n).tolist()]


def run_in_threads(functions: Sequence[Callable[[], None]]) -> None:
    """Run each function in its own thread; a single one in the calling thread, whose OpenMP pool is warm.

    The error of the first function that failed is raised once all have ended.
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
    """Disable garbage collection: a pause is longer than an embedding of a small model."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class ServerPool(Generic[Query]):
    """Servers behind one queue: one warm function per thread, which returns when its query is answered."""

    servers: Sequence[Callable[[Query], None]]
    clock: Clock
    run_all: RunAll = run_in_threads


def serve_arrivals(
    pool: ServerPool[Query],
    queries: Sequence[Query],
    arrivals_ns: NDArray[np.int64],
    *,
    patience_ns: int | None = None,
    late_ns: int | None = None,
    late_max: int = 0,
) -> Served:
    """Serve queries in order of arrival, each by the first free server.

    Args:
        pool: the servers.
        queries: one per arrival.
        arrivals_ns: (queries,) nanoseconds from the start, ascending.
        patience_ns: how long after the last arrival the queue is still served; by default until it is empty.
        late_ns: a query that takes longer is late.
        late_max: more late queries than this end the run.

    Raises:
        MeasureError: no servers, no queries, or unequal numbers of queries and arrivals.
        Exception: whatever a server raises; it ends the run.
    """
    servers, clock = pool.servers, pool.clock
    if not servers or not queries or len(queries) != len(arrivals_ns):
        raise MeasureError(
            f"serving: {len(servers)} servers, {len(queries)} queries and {len(arrivals_ns)} arrivals; "
            "expected at least one server and one query, and one arrival per query"
        )
    start_ns = clock.now_ns() + LEAD_NS
    due = (arrivals_ns + start_ns).tolist()
    done = [0] * len(due)
    late = [0] * len(servers)
    close_ns = None if patience_ns is None else due[-1] + patience_ns
    stop = threading.Event()
    abandoned = threading.Event()
    # next() on a range's iterator is atomic under the GIL: each query is taken once.
    tickets = iter(range(len(due)))

    def work(server: int, serve: Callable[[Query], None]) -> None:
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
                late[server] += 1
                if sum(late) > late_max:
                    abandoned.set()
                    stop.set()

    with collector_paused():
        pool.run_all([partial(work, server, serve) for server, serve in enumerate(servers)])
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
