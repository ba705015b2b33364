"""Does the server scenario measure what queueing theory says?

    python bench/studies/server_against_theory.py [--seconds 60]

A stub engine takes the same time for every query, one worker serves them, and arrivals are a Poisson process. This is an M/D/1 queue,
whose p99 is known. Expected: within 5 % of it at 50, 70 and 90 % load. Three rows per load:

    theory      Erlang's distribution of the wait
    simulation  the scenario's own code in simulated time, over so many queries that chance is small
    real time   the same code on this machine's clock and threads. At high load, a few thousand queries vary by more than 5 % by
                chance, so it is compared with Lindley's recursion over the same arrivals. The difference is what the machine,
                the clock and the code add
"""

import argparse
import math
import time
from decimal import Decimal, localcontext

import numpy as np

from optbench.measure.load.arrivals import ServerPool, SystemClock, poisson_arrivals
from optbench.measure.load.scenarios import server

MS = 1_000_000
LOADS = (0.5, 0.7, 0.9)
# Long waits come in busy periods, so a simulated p99 is far noisier than its number of queries suggests, the more so the higher the
# load. With these numbers six seeds deviate from theory by 1.2 % in the root mean square and 2.5 % at most.
QUERIES = {0.5: 300_000, 0.7: 600_000, 0.9: 4_000_000}


class SimulatedClock:
    """A clock for one worker that advances only when told to."""

    def __init__(self) -> None:
        self.now = 0

    def now_ns(self) -> int:
        return self.now

    def wait_until(self, moment_ns: int) -> None:
        self.now = max(self.now, moment_ns)

    def take(self, service_ns: int) -> None:
        """A server: a query is its own service time."""
        self.now += service_ns


def waiting_cdf(t: float, load: float) -> float:
    """M/D/1: the probability of waiting at most `t` service times. Erlang 1909; Gross et al. 2008, Fundamentals of Queueing Theory, 5.1.7.

    The terms alternate and grow to e^(load * t), so they are summed with 80 digits.
    """
    with localcontext() as context:
        context.prec = 80
        rho, at = Decimal(load), Decimal(t)
        total = (rho * at).exp()
        for k in range(1, int(t) + 1):
            term = rho * (k - at)
            total += term**k / math.factorial(k) * (-term).exp()
        return float((1 - rho) * total)


def sojourn_quantile(q: float, load: float) -> float:
    """M/D/1: the `q` quantile of the time from arrival to answer, in service times."""
    low, high = 0.0, 200.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if waiting_cdf(middle, load) < q else (low, middle)
    return low + 1


def busy(service_ns: int) -> None:
    """A stub engine that keeps the CPU busy for a given time and never sleeps."""
    end = time.perf_counter_ns() + service_ns
    while time.perf_counter_ns() < end:
        pass


def lindley_p99(rate: float, n: int, service_ns: int) -> float:
    """p99 in ms of the arrivals that `server` draws with seed 0, if each query took exactly `service_ns`."""
    free, latencies = 0, []
    for arrival in poisson_arrivals(rate, n, 0).tolist():
        free = max(arrival, free) + service_ns
        latencies.append(free - arrival)
    return float(np.percentile(latencies, 99)) / MS


def main() -> None:
    """Print three rows per load."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of each run in real time")
    parser.add_argument("--service-ms", type=float, default=2.0, help="service time of the stub engine")
    options = parser.parse_args()
    service_ns = round(options.service_ms * MS)
    print(f"{'load':>5} {'':12} {'queries':>9} {'p99 ms':>9} {'against':>9} {'off by':>8}")
    for load in LOADS:
        rate = load / (service_ns / 1e9)
        theory = sojourn_quantile(0.99, load) * options.service_ms
        print(f"{load:5.0%} {'theory':12} {'':9} {theory:9.2f}")
        clock = SimulatedClock()
        simulated = server(ServerPool([clock.take], clock), [service_ns], rate, QUERIES[load] / rate).latency
        rows = [("simulation", simulated, theory)]
        real = server(ServerPool([busy], SystemClock()), [service_ns], rate, options.seconds).latency
        rows.append(("real time", real, lindley_p99(rate, real.n, service_ns)))
        for name, latency, expected in rows:
            p99 = latency.p99_ns.point / MS
            print(f"{'':5} {name:12} {latency.n:9} {p99:9.2f} {expected:9.2f} {p99 / expected - 1:+8.1%}", flush=True)


if __name__ == "__main__":
    main()
