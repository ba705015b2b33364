"""Intervals: what a measured difference can and cannot say.

Accuracy differences are paired over queries and bootstrapped; latency samples get order-statistic intervals, which hold for
any distribution. Both choices were made by simulation; the reasons stand with the functions.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from optbench.errors import MeasureError

__all__ = [
    "Change",
    "Interval",
    "further_queries",
    "further_rounds",
    "noise_doubts",
    "paired_relative_change",
    "percentile_interval",
    "ratio_interval",
    "round_ratios",
    "unpaired_ratio_interval",
]

# Index matrices of a bootstrap batch stay below 64 MB, whatever the number of queries.
BATCH_ELEMENTS = 4_000_000
# Round medians of a quiet machine stay within 1-3 %; a second process moves them by 30-70 % in our measurements.
SPREAD_MAX = 0.10
DRIFT_MAX = 0.05
# What "probably" means where more queries or rounds are asked for: the usual power of a study (Cohen 1988).
SETTLING_PROBABILITY = 0.8
FURTHER_TIMES_MAX = 1000
# The share trimmed of each end, Yuen's own choice; with 6 rounds it is one at either end, with fewer than 5 none.
TRIMMED = 0.2
ROUNDS_TRIMMED_MIN = 6


class Interval(BaseModel):
    """A figure and the range that holds the true one with the given confidence.

    Attributes:
        point: the figure, in the samples' unit.
        low: lower end.
        high: upper end.
        confidence: in (0, 1).
        n: the number of independent observations behind it: queries, rounds or samples.
        bounded: false where there are too few samples for the confidence; `low` and `high` are then the smallest and
            largest sample, and the true figure may well lie beyond.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    point: float
    low: float
    high: float
    confidence: float
    n: int
    bounded: bool = True

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


class Change(Interval):
    """A relative change of a mean: -0.01 is a loss of 1 %."""


def paired_relative_change(
    baseline: Mapping[str, float], candidate: Mapping[str, float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> Change:
    """The relative change of the mean from `baseline` to `candidate`, with a paired bootstrap interval over queries.

    The interval is the percentile bootstrap's, taken at Hesterberg's expanded level, which undoes its narrowness in small
    samples. BCa was tried and covers less: with 99 queries of which a few lose much, 88 % against 90-93 %.

    Args:
        baseline: query id to value.
        candidate: likewise, of the same queries; their order does not matter.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap resamples.
        confidence: in (0, 1).

    Raises:
        MeasureError: other or too few queries, a value that is not finite, or a baseline whose mean is not positive.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv:1411.5279, section 4.2.
    """
    from scipy import stats

    if baseline.keys() != candidate.keys():
        apart = sorted(baseline.keys() ^ candidate.keys())
        raise MeasureError(
            f"paired values: {len(apart)} queries are in one result only, {apart[0]!r} first; measure both on the same queries"
        )
    before = np.array(list(baseline.values()), dtype=np.float64)
    after = np.array([candidate[query] for query in baseline], dtype=np.float64)
    n = len(before)
    if n < 2:
        raise MeasureError(f"paired values: {n} queries; an interval needs 2 at the very least, and 100 to be of use")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise MeasureError("paired values: a value is NaN or infinite; the model that gave it is broken")
    total = before.sum()
    if total <= 0:
        raise MeasureError("paired values: the baseline's mean is zero or less, so nothing can be lost against it; check the baseline")
    point = float(after.sum() / total - 1)
    if np.array_equal(before, after):
        return Change(point=0.0, low=0.0, high=0.0, confidence=confidence, n=n)

    def relative_change(resampled_before: NDArray[np.float64], resampled_after: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        # A resample of zero-valued queries only has no relative change: NaN, left out below.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(resampled_after.sum(axis) / resampled_before.sum(axis) - 1)

    with warnings.catch_warnings():
        # scipy's own interval is not used, and what it says of NaN resamples is dealt with below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            (before, after),
            relative_change,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BATCH_ELEMENTS // n),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    drawn = drawn[np.isfinite(drawn)]
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Change(point=point, low=float(low), high=float(high), confidence=confidence, n=n)


def percentile_interval(samples: ArrayLike, q: float, *, confidence: float = 0.95) -> Interval:
    """A percentile of latency samples with its distribution-free interval.

    The ends are order statistics whose ranks follow the binomial distribution: the interval that a bootstrap of the
    percentile converges to with infinitely many resamples, exact, unseeded and valid for any distribution. It needs at
    least log((1 - confidence) / 2) / log(max(q, 100 - q) / 100) samples: 6 for a median at 95 %, 36 for p90, 368 for p99.

    Args:
        samples: (samples,), any unit.
        q: in percent: 50, 90, 99.
        confidence: in (0, 1).

    Raises:
        MeasureError: no samples, or one that is not finite.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2, as in `scipy.stats.quantile_test`.
    """
    from scipy import stats

    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise MeasureError(f"p{q:g}: {values.size} samples, all finite and at least one wanted; measure again")
    ends = stats.quantile_test(values, q=0, p=q / 100).confidence_interval(confidence)
    return Interval(
        point=float(np.percentile(values, q)),
        low=float(np.nan_to_num(ends.low, nan=values.min())),
        high=float(np.nan_to_num(ends.high, nan=values.max())),
        confidence=confidence,
        n=values.size,
        bounded=bool(np.isfinite(ends.low) and np.isfinite(ends.high)),
    )


def ratio_interval(baseline: Sequence[ArrayLike], candidate: Sequence[ArrayLike], *, confidence: float = 0.95) -> Interval:
    """How many times faster the candidate is: the median over rounds of baseline median / candidate median.

    A round times both, one after the other, so what slows the machine for seconds cancels within the round. Samples within a
    round are not independent; rounds nearly are, so they alone are the observations.

    Args:
        baseline: one array of latencies per round.
        candidate: likewise, the same number of rounds, in the same order.
        confidence: in (0, 1).

    Returns:
        above 1 where the candidate is faster. `bounded` is false below 6 rounds at 95 %.

    Raises:
        MeasureError: unequal numbers of rounds, or a round without positive samples.
    """
    return percentile_interval(round_ratios(baseline, candidate), 50, confidence=confidence)


def round_ratios(baseline: Sequence[ArrayLike], candidate: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """How many times faster the candidate was in each round; arguments and errors as those of `ratio_interval`.

    Returns:
        (rounds,): baseline median / candidate median.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise MeasureError(f"latency ratio: {len(baseline)} rounds of the baseline, {len(candidate)} of the candidate; time them in pairs")
    before, after = (np.array([_round_median(samples) for samples in rounds]) for rounds in (baseline, candidate))
    ratios: NDArray[np.float64] = before / after
    return ratios


def _round_median(samples: ArrayLike) -> float:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0 or not (np.isfinite(values).all() and values.min() > 0):
        raise MeasureError("latency ratio: a round holds no samples, or one that is not positive; measure again")
    return float(np.median(values))


def unpaired_ratio_interval(numerator: ArrayLike, denominator: ArrayLike, *, confidence: float = 0.95, deviation: float = 0.0) -> Interval:
    """The quotient of two figures that were measured in separate runs, such as the speed-ups of two artifacts.

    By Yuen's test on logarithms: means without the largest and smallest fifth, which the rounds that something disturbed do not
    move. Combining the two medians' own intervals (Zou and Donner 2008) was tried and holds the truth in 99 % of runs, not 95 %:
    wider than need be.

    Args:
        numerator: (rounds,), each round's figure, positive.
        denominator: (rounds,), likewise, of another run; the number of rounds may differ.
        confidence: in (0, 1).
        deviation: standard deviation of what moves the quotient's logarithm from run to run and not from round to round; 0.01 is
            about 1 %.

    Returns:
        `n` is that of the run with fewer rounds. `bounded` is false below 6 rounds, where nothing can be trimmed.

    Raises:
        MeasureError: fewer than 2 rounds, or a figure that is not positive.

    Source: Yuen 1974, "The two-sample trimmed t for unequal population variances", Biometrika 61(1).
    """
    from scipy import stats

    above, below = (np.asarray(values, dtype=np.float64).ravel() for values in (numerator, denominator))
    n = min(above.size, below.size)
    if n < 2 or not all(np.isfinite(values).all() and values.min() > 0 for values in (above, below)):
        raise MeasureError(
            f"quotient of two runs: {above.size} and {below.size} rounds; 2 at least, all positive, are wanted; measure again"
        )
    logs = np.log(above), np.log(below)
    point = float(stats.trim_mean(logs[0], TRIMMED) - stats.trim_mean(logs[1], TRIMMED))
    half_width = 0.0
    # Rounds that are all alike have no error, and scipy no degrees of freedom for it.
    if any(np.ptp(stats.trimboth(np.sort(values), TRIMMED)) > 0 for values in logs):
        with warnings.catch_warnings():
            # One of the two may be without variance; the other's is enough.
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            ends = stats.ttest_ind(*logs, equal_var=False, trim=TRIMMED).confidence_interval(confidence)
        half_width = float(ends.high - ends.low) / 2
    half_width = math.hypot(half_width, deviation * NormalDist().inv_cdf((1 + confidence) / 2))
    return Interval(
        point=math.exp(point),
        low=math.exp(point - half_width),
        high=math.exp(point + half_width),
        confidence=confidence,
        n=n,
        bounded=n >= ROUNDS_TRIMMED_MIN,
    )


def further_queries(change: Interval, limit: float) -> int | None:
    """How many more queries would probably settle on which side of a limit a change lies.

    The interval is taken to shrink with the square root of the queries, and the point estimate to be the truth. Then the count
    given settles it with a probability of 80 %, as the next estimate will scatter about the truth too.

    Args:
        change: of accuracy, as `paired_relative_change` gives it.
        limit: in its unit: -0.01 where a loss of 1 % is allowed.

    Returns:
        0 where it is settled already, tens or two digits otherwise; None where the estimate sits on the limit, so that a
        thousand times as many queries would not do.
    """
    return _further(change, limit, step=10, least=2)


def further_rounds(interval: Interval, limit: float) -> int | None:
    """How many more rounds would probably settle on which side of a limit a ratio lies; as `further_queries`.

    Args:
        interval: as `ratio_interval` gives it.
        limit: in its unit: 2.25 where that speed-up is wanted.

    Returns:
        0 where it is settled already, fives or two digits otherwise; None where the estimate sits on the limit.
    """
    # A median's interval is bounded once neither end of the sample has half the error's probability: 6 rounds at 95 %.
    least = math.ceil(math.log2(2 / (1 - interval.confidence)))
    return _further(interval, limit, step=5, least=least)


def _further(interval: Interval, limit: float, step: int, least: int) -> int | None:
    distance = abs(interval.point - limit)
    reach = interval.point - interval.low if interval.point >= limit else interval.high - interval.point
    if interval.bounded and reach <= distance:
        return 0
    room = 1 + NormalDist().inv_cdf(SETTLING_PROBABILITY) / NormalDist().inv_cdf((1 + interval.confidence) / 2)
    if (room * reach) ** 2 >= FURTHER_TIMES_MAX * distance**2:
        return None
    wanted = max(math.ceil(interval.n * (room * reach / distance) ** 2), least)
    more = max(1, wanted - interval.n)
    unit: int = max(step, 10 ** max(0, len(str(more)) - 2))
    return unit * math.ceil(more / unit)


def noise_doubts(rounds: Sequence[ArrayLike]) -> list[str]:
    """What makes a model's latency figures at one length doubtful, in words.

    Args:
        rounds: its latencies in nanoseconds, an array a round, in the order of time.
    """
    medians = np.array([_round_median(samples) for samples in rounds])
    doubts = []
    quarter, three_quarters = np.percentile(medians, [25, 75])
    if three_quarters - quarter > SPREAD_MAX * np.median(medians):
        doubts.append(f"the middle half of the rounds spreads over more than {SPREAD_MAX:.0%}; something else used the machine")
    half = len(medians) // 2
    drift = float(np.median(medians[-half:]) / np.median(medians[:half]) - 1) if half else 0.0
    if abs(drift) > DRIFT_MAX:
        pace = "slower" if drift > 0 else "faster"
        doubts.append(f"the second half of the rounds is over {DRIFT_MAX:.0%} {pace} than the first; the clock rate or the load moved")
    return doubts
