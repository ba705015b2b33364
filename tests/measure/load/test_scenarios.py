"""The scenarios in simulated time, against queueing theory."""

import heapq
import math
import threading
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import pytest

from bench.studies.server_against_theory import QUERIES, SimulatedClock, lindley_p99, sojourn_quantile, waiting_cdf
from optbench.errors import MeasureError
from optbench.measure.load.arrivals import ServerPool, draw_queries, poisson_arrivals, run_in_threads, serve_arrivals
from optbench.measure.load.scenarios import SAMPLES_KEPT, Latencies, highest_rate, mlperf_queries, offline, server, single_stream

MS = 1_000_000


class SimulatedThreads:
    """Simulated time for several threads: when all of them wait, the one that waits for the earliest moment goes on."""

    def __init__(self) -> None:
        self.now = 0
        self._running = 0
        self._waiting: list[tuple[int, int]] = []
        self._released: set[int] = set()
        self._names = count()
        self._changed = threading.Condition()

    def now_ns(self) -> int:
        return self.now

    def wait_until(self, moment_ns: int) -> None:
        with self._changed:
            name = next(self._names)
            heapq.heappush(self._waiting, (moment_ns, name))
            self._leave()
            self._changed.wait_for(lambda: name in self._released)

    def take(self, service_ns: int) -> None:
        self.wait_until(self.now + service_ns)

    def run_all(self, functions: Sequence[Callable[[], None]]) -> None:
        self._running = len(functions)
        run_in_threads([lambda function=function: self._run(function) for function in functions])  # type: ignore[misc]

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            with self._changed:
                self._leave()

    def _leave(self) -> None:
        self._running -= 1
        if self._running == 0 and self._waiting:
            moment_ns, name = heapq.heappop(self._waiting)
            self.now = max(self.now, moment_ns)
            self._running = 1
            self._released.add(name)
            self._changed.notify_all()


@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
def test_theory_has_the_mean_wait_of_pollaczek_and_khinchine(load: float) -> None:
    step = 0.1
    waits = [1 - waiting_cdf((index + 0.5) * step, load) for index in range(600)]
    assert sum(waits) * step == pytest.approx(load / (2 * (1 - load)), rel=1e-3)


@pytest.mark.parametrize(("load", "queries"), QUERIES.items())
def test_server_p99_is_that_of_queueing_theory(load: float, queries: int) -> None:
    clock = SimulatedClock()
    rate = load * 1000
    run = server(ServerPool([clock.take], clock), [MS], rate, queries / rate)
    assert run.latency.n == queries
    assert run.n_unserved == 0
    assert run.latency.p99_ns.point / MS == pytest.approx(sojourn_quantile(0.99, load), rel=0.05)
    assert run.latency.mean_ns / MS == pytest.approx(1 + load / (2 * (1 - load)), rel=0.03)
    assert run.served_per_second == pytest.approx(rate, rel=0.01)


def test_real_time_is_set_against_the_same_arrivals() -> None:
    clock = SimulatedClock()
    run = server(ServerPool([clock.take], clock), [MS], 700, 10)
    assert run.latency.p99_ns.point / MS == pytest.approx(lindley_p99(700, run.latency.n, MS), rel=1e-6)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_one_queue_first_come_first_served(workers: int) -> None:
    clock = SimulatedThreads()
    arrivals = poisson_arrivals(workers * 900, 1500, seed=5)
    times = np.random.default_rng(6).integers(MS // 2, 3 * MS // 2, len(arrivals)).tolist()
    served = serve_arrivals(ServerPool([clock.take] * workers, clock, clock.run_all), times, arrivals)
    # Kiefer and Wolfowitz 1955: a query begins when it has arrived and the first worker is free.
    free = [0] * workers
    expected = []
    for arrival, service in zip(arrivals.tolist(), times, strict=True):
        end = max(arrival, heapq.heappop(free)) + service
        heapq.heappush(free, end)
        expected.append(end - arrival)
    assert served.latencies_ns.tolist() == expected
    assert served.elapsed_ns == max(free)


def test_stall_is_charged_to_every_query_that_arrives_during_it() -> None:
    clock = SimulatedClock()
    times = [MS] * 200
    times[10] = 1000 * MS
    served = serve_arrivals(ServerPool([clock.take], clock), times, np.arange(200) * 10 * MS)
    # The k-th query after the stall arrives 10 k ms into it and leaves k ms after it.
    assert (served.latencies_ns[10:121] // MS).tolist() == [1000 - 9 * k for k in range(111)]
    assert set(served.latencies_ns[122:].tolist()) == {MS}


def test_overload_is_cut_off_and_counts_the_waits_so_far() -> None:
    clock = SimulatedClock()
    run = server(ServerPool([clock.take], clock), [MS], 4000, 2)
    assert run.n_unserved == pytest.approx(4000, rel=0.02)  # two seconds of arrivals, two more of patience, at 1000 a second
    assert run.latency.n == 8000
    assert run.served_per_second == pytest.approx(1000, rel=0.01)
    assert run.latency.p99_ns.point > 2e9
    assert not run.holds(1e9)


def test_run_ends_as_soon_as_its_p99_is_lost() -> None:
    clock = SimulatedClock()
    run = server(ServerPool([clock.take], clock), [MS], 2000, 100, limit_ms=0.5)
    assert run.abandoned
    assert not run.holds(1e9)
    assert run.latency.n < 10_000  # of 200,000: a hundredth, twice over for those still in the queue, and the first ones


def test_server_that_fails_ends_the_run_with_its_own_error() -> None:
    clock = SimulatedClock()
    calls = []

    def fail(query: int) -> None:
        calls.append(query)
        if len(calls) == 3:
            raise MeasureError("broken")

    with pytest.raises(MeasureError, match="broken"):
        serve_arrivals(ServerPool([fail], clock), list(range(10)), np.arange(10))
    assert calls == [0, 1, 2]


def test_highest_rate_is_the_one_that_theory_gives_for_the_limit() -> None:
    limit_ms = 5.0
    clock = SimulatedClock()
    found = highest_rate(ServerPool([clock.take], clock), [MS], limit_ms, 300, first_rate=1000)
    low, high = 0.0, 0.99
    while high - low > 1e-5:
        load = (low + high) / 2
        low, high = (load, high) if sojourn_quantile(0.99, load) < limit_ms else (low, load)
    # The search stops at most 2 % below; a p99 of 180,000 queries is within 2 %, which at this load is 1 % of the rate.
    assert 0.97 * low < found.rate / 1000 < 1.01 * low
    assert found.converged
    assert found.failed_rate is not None
    assert found.rate < found.failed_rate <= 1.02 * found.rate
    assert found.run is not None
    assert found.run.holds(limit_ms)
    assert [probe.rate for probe in found.probes if probe.held][-1] == found.rate


def test_limit_below_a_lone_query_is_held_at_no_rate() -> None:
    clock = SimulatedClock()
    found = highest_rate(ServerPool([clock.take], clock), [MS], 0.9, 10, first_rate=1000)
    assert (found.rate, found.run, found.converged) == (0, None, False)
    assert not any(probe.held for probe in found.probes)
    assert clock.now < 30e9  # seven runs of ten seconds would be seventy: each gives up early


def test_search_goes_up_from_a_first_rate_that_is_too_low() -> None:
    clock = SimulatedClock()
    found = highest_rate(ServerPool([clock.take], clock), [MS], 5, 100, first_rate=100)
    assert [probe.rate for probe in found.probes[:4]] == [100, 200, 400, 800]
    assert found.converged


def test_lenient_limit_does_not_find_a_rate_beyond_what_can_be_served() -> None:
    clock = SimulatedClock()
    found = highest_rate(ServerPool([clock.take], clock), [MS], 1000, 0.1, first_rate=1000)
    # A run of 50 limits holds a backlog of one limit at 2 % above capacity; one of a tenth of a second would hold any rate.
    assert 0.98 * 1000 < found.rate < 1.03 * 1000


def test_single_stream_times_each_query_alone() -> None:
    clock = SimulatedClock()
    result = single_stream(clock.take, [MS, 3 * MS], 10, clock).latency
    assert set(result.samples_ns) == {MS, 3 * MS}
    assert result.mean_ns == pytest.approx(2 * MS, rel=0.05)
    assert (result.p50_ns.point, result.p99_ns.point) in ((MS, 3 * MS), (3 * MS, 3 * MS))
    assert result.n == pytest.approx(5000, rel=0.05)


def test_slow_single_stream_still_has_enough_queries_for_a_percentile() -> None:
    clock = SimulatedClock()
    assert single_stream(clock.take, [1000 * MS], 1, clock).latency.n == 100


def test_offline_counts_texts_over_the_time_of_the_slowest_worker() -> None:
    clock = SimulatedThreads()
    # Longest first on two workers: 5 | 3 + 2 + 1, so 6 ms.
    found = offline(ServerPool([clock.take] * 2, clock, clock.run_all), [5 * MS, 3 * MS, 2 * MS, MS], 16, 4)
    assert (found.batch, found.n_texts, found.seconds) == (4, 16, 0.006)
    assert found.texts_per_second == pytest.approx(16 / 0.006)


def test_arrivals_of_one_seed_differ_by_the_rate_alone() -> None:
    slow, fast = poisson_arrivals(10, 1000, seed=3), poisson_arrivals(20, 500, seed=3)
    np.testing.assert_allclose(slow[:500], 2 * fast, atol=2)
    assert (np.diff(slow) >= 0).all()
    gaps = np.diff(poisson_arrivals(10, 200_000, seed=4)) / 1e9
    # Exponential: mean and deviation are equal; their errors are 0.2 and 0.4 %.
    assert gaps.mean() == pytest.approx(0.1, rel=0.01)
    assert gaps.std() == pytest.approx(0.1, rel=0.015)


def test_fewer_drawn_queries_are_the_first_of_more() -> None:
    pool = list(range(50))
    assert draw_queries(pool, 100, seed=1) == draw_queries(pool, 300, seed=1)[:100]
    assert set(draw_queries(pool, 2000, seed=1)) == set(pool)
    assert draw_queries(pool, 100, seed=1) != draw_queries(pool, 100, seed=2)


def test_result_keeps_a_bounded_number_of_raw_samples() -> None:
    latencies = Latencies.of(np.arange(1, 25_001))
    assert latencies.n == 25_000
    assert len(latencies.samples_ns) <= SAMPLES_KEPT
    assert latencies.samples_ns[:2] == (1, 4)
    assert latencies.p99_ns.point == pytest.approx(0.99 * 25_000, rel=1e-4)


@pytest.mark.parametrize(("n", "bounded"), [(367, False), (368, True)])
def test_too_few_queries_for_an_interval_of_p99_are_flagged(n: int, bounded: bool) -> None:
    # All n samples lie below the true p99 with chance 0.99^n, which must be at most 2.5 %.
    assert Latencies.of(np.arange(1, n + 1)).p99_ns.bounded is bounded


def test_query_counts_are_those_of_mlperfs_guide() -> None:
    assert [mlperf_queries(q) for q in (90, 95, 99)] == [24_576, 57_344, 270_336]


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (math.inf, 1), (1, 0), (1, math.nan)])
def test_rate_and_duration_must_be_positive(rate: float, seconds: float) -> None:
    clock = SimulatedClock()
    with pytest.raises(MeasureError, match="must be above 0"):
        server(ServerPool([clock.take], clock), [MS], rate, seconds)
    with pytest.raises(MeasureError, match=r"limit of -1 ms"):
        highest_rate(ServerPool([clock.take], clock), [MS], -1, 1, first_rate=1)


def test_schedule_needs_an_arrival_for_each_query() -> None:
    clock = SimulatedClock()
    with pytest.raises(MeasureError, match=r"1 servers, 2 queries and 1 arrivals"):
        serve_arrivals(ServerPool([clock.take], clock), [MS, MS], np.array([0]))
