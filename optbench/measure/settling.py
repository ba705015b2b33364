"""How much more measuring would settle what an interval leaves open."""

import math
from bisect import bisect_left
from statistics import NormalDist

from optbench.measure.statistics import Interval

__all__ = ["further"]

# What "probably" means where more queries or rounds are asked for: the usual power of a study (Cohen 1988).
SETTLING_PROBABILITY = 0.8
# More than the (1.96 / 0.253)^2 = 60 times as many that an estimate on the limit wants.
TIMES_MAX = 100


def further(interval: Interval, limit: float) -> int:
    """How many more queries, rounds or processes would probably settle on which side of a limit a figure lies.

    "Probably" is a chance of 80 % as things stand: the truth may lie anywhere that the interval makes likely, on either side of
    the limit, and the next estimate scatters about it. (To take the estimate for the truth asks for too few: those that are
    inconclusive by bad luck are settled, the others are not.) Further queries join those that are there; a run with more processes
    or rounds is a new one.

    Args:
        interval: of whatever is to be settled.
        limit: in its unit: -0.01 where a loss of 1 % is allowed, 2.25 where that speed-up is wanted.

    Returns:
        0 where it is settled already; otherwise in tens of queries, fives of rounds and ones of processes, or two digits. At most
        some sixty times as many as there are, where the estimate sits on the limit.

    Source: O'Hagan, Stevens and Campbell 2005, "Assurance in clinical trial design", Pharmaceutical Statistics 4(3).
    """
    distance = abs(interval.point - limit)
    reach = interval.point - interval.low if interval.point >= limit else interval.high - interval.point
    if interval.bounded and reach <= distance:
        return 0
    step, least = {"queries": (10, 2), "processes": (1, 2)}.get(interval.of, (5, _rounds_bounded(interval.confidence)))
    deviation = reach * math.sqrt(interval.n) / _quantile(interval, interval.n)
    counts = range(max(interval.n + 1, least), TIMES_MAX * interval.n + least)
    # The chance grows with the number.
    found = bisect_left(counts, SETTLING_PROBABILITY, key=lambda wanted: _settles(interval, wanted, distance, deviation))
    more = counts[min(found, len(counts) - 1)] - interval.n
    unit: int = max(step, 10 ** max(0, len(str(more)) - 2))
    return unit * math.ceil(more / unit)


def _rounds_bounded(confidence: float) -> int:
    """A median's interval is bounded once neither end of the sample has half the error's probability: 6 rounds at 95 %."""
    return math.ceil(math.log2(2 / (1 - confidence)))


def _quantile(interval: Interval, n: int) -> float:
    """By how many standard errors an interval of n observations reaches to either side."""
    from scipy import stats

    upper = (1 + interval.confidence) / 2
    return float(stats.t.ppf(upper, n - 1) if interval.of == "processes" else NormalDist().inv_cdf(upper))


def _settles(interval: Interval, wanted: int, distance: float, deviation: float) -> float:
    """The chance that an interval of `wanted` observations excludes the limit, the truth being as likely as the present one says."""
    if deviation == 0:
        return 1.0
    joined = -1 if interval.of == "queries" else 1
    # So few processes leave their own deviation uncertain: the truth's is Student's, whose variance is larger by this.
    present = (interval.n - 1) / max(interval.n - 3, 1) if interval.of == "processes" else 1
    scatter = NormalDist(distance, deviation * math.sqrt(present / interval.n + joined / wanted))
    reach = _quantile(interval, wanted) * deviation / math.sqrt(wanted)
    return 1 - scatter.cdf(reach) + scatter.cdf(-reach)
