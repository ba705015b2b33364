"""How many more observations would settle an inconclusive interval."""

import math
from bisect import bisect_left
from statistics import NormalDist

from optbench.measure.statistics import Interval

__all__ = ["samples_needed"]

# The usual statistical power of a study (Cohen 1988).
SETTLING_PROBABILITY = 0.8
# An estimate on the limit needs (1.96 / 0.253)^2 = 60 times as many; this is above that.
TIMES_MAX = 100


def samples_needed(interval: Interval, limit: float) -> int:
    """How many more queries, rounds or processes would probably show on which side of a limit the true figure is.

    "Probably" is a probability of 80 % (the assurance): over the distribution of the true figure that the interval implies, and the
    sampling error of the next estimate. Taking the estimate for the truth would ask for too few. More queries extend the sample; more
    processes or rounds mean a new run. The limit is -0.01 if a loss of 1 % is allowed, 2.25 if that speed-up is required.

    Returns:
        0 if the interval excludes the limit already; else rounded up to tens of queries, fives of rounds, single processes, or two
        digits. At most about sixty times as many as measured, for an estimate on the limit.

    Source: O'Hagan, Stevens and Campbell 2005, "Assurance in clinical trial design", Pharmaceutical Statistics 4(3).
    """
    distance = abs(interval.point - limit)
    reach = interval.point - interval.low if interval.point >= limit else interval.high - interval.point
    if interval.bounded and reach <= distance:
        return 0
    step, least = {"queries": (10, 2), "processes": (1, 2)}.get(interval.of, (5, _rounds_bounded(interval.confidence)))
    deviation = reach * math.sqrt(interval.n) / _quantile(interval, interval.n)
    counts = range(max(interval.n + 1, least), TIMES_MAX * interval.n + least)
    # The probability grows with the number.
    found = bisect_left(counts, SETTLING_PROBABILITY, key=lambda n: _settles(interval, n, distance, deviation))
    more = counts[min(found, len(counts) - 1)] - interval.n
    unit: int = max(step, 10 ** max(0, len(str(more)) - 2))
    return unit * math.ceil(more / unit)


def _rounds_bounded(confidence: float) -> int:
    """Rounds that a bounded interval of the median needs: 6 at 95 %."""
    return math.ceil(math.log2(2 / (1 - confidence)))


def _quantile(interval: Interval, n: int) -> float:
    """The half-width of an interval of n observations, in standard errors."""
    from scipy import stats

    upper = (1 + interval.confidence) / 2
    return float(stats.t.ppf(upper, n - 1) if interval.of == "processes" else NormalDist().inv_cdf(upper))


def _settles(interval: Interval, n: int, distance: float, deviation: float) -> float:
    """The probability that an interval of `n` observations excludes the limit, given the present interval."""
    if deviation == 0:
        return 1.0
    joined = -1 if interval.of == "queries" else 1
    # The deviation of few processes is itself uncertain: Student's t has a variance larger by this factor.
    present = (interval.n - 1) / max(interval.n - 3, 1) if interval.of == "processes" else 1
    scatter = NormalDist(distance, deviation * math.sqrt(present / interval.n + joined / n))
    reach = _quantile(interval, n) * deviation / math.sqrt(n)
    return 1 - scatter.cdf(reach) + scatter.cdf(-reach)
