"""Intervals: what a measured difference can and cannot say.

Accuracy differences are paired over queries and bootstrapped. Latency ratios are taken round by round and summed up process
by process, as runs of one process are not independent. Percentiles of samples get order-statistic intervals, which hold for any
distribution. The choices were made by simulation, `bench/simulate_intervals.py`; the reasons stand with the functions.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optbench.errors import MeasureError
from optbench.machine.frozen import Frozen

__all__ = [
    "Change",
    "Interval",
    "Observed",
    "noise_doubts",
    "paired_relative_change",
    "percentile_interval",
    "process_rounds",
    "ratio_interval",
    "ratio_observations",
    "typical_interval",
    "unpaired_ratio_interval",
]

# Index matrices of a bootstrap batch stay below 64 MB, whatever the number of queries.
BATCH_ELEMENTS = 4_000_000
# An end of 10,000 resamples errs by 1.7 % of the half width, one of 2,000 by 3.8 %; a task of 10,000 queries gets 4,000 in a second.
RESAMPLES_MIN, RESAMPLES_MAX = 2_000, 10_000
RESAMPLED_ELEMENTS = 40_000_000
# By how much of a mean query's value a query that was missed may have changed at least. By simulation: with nothing the interval holds
# the truth in 83 % at worst with 99 queries, with a fifth in 91 %, with 0.3 in 94 %, where it is wider by a sixth than with nothing.
UNSEEN_MIN = 0.25
# Round medians of a quiet machine stay within 1-3 %; a second process moves them by 30-70 % in our measurements.
SPREAD_MAX = 0.10
DRIFT_MAX = 0.05
PROCESSES_DIFFER_MAX = 0.20
# The share trimmed of each end, Yuen's own choice; with 6 rounds it is one at either end, with fewer than 5 none.
TRIMMED = 0.2
ROUNDS_TRIMMED_MIN = 6


Observed = Literal["samples", "queries", "rounds", "processes"]
"""What an interval counts as independent."""


class Interval(Frozen):
    """A figure and the range that holds the true one with the given confidence.

    Attributes:
        point: the figure, in the samples' unit.
        low: lower end.
        high: upper end.
        confidence: in (0, 1).
        n: the number of independent observations behind it.
        of: what they are; `processes` are processes that a model was opened in.
        bounded: false where there are too few samples for the confidence; `low` and `high` are then the smallest and
            largest sample, and the true figure may well lie beyond.
    """

    point: float
    low: float
    high: float
    confidence: float
    n: int
    of: Observed = "samples"
    bounded: bool = True

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


class Change(Interval):
    """A relative change of a mean over queries: -0.01 is a loss of 1 %."""

    of: Observed = "queries"


def paired_relative_change(
    baseline: Mapping[str, float], candidate: Mapping[str, float], *, seed: int = 0, resamples: int | None = None, confidence: float = 0.95
) -> Change:
    """The relative change of the mean from `baseline` to `candidate`, with a paired bootstrap interval over queries.

    Most queries do not move, some move a little, and now and then one loses much. A sample that happens to hold none of those
    looks surer than it is, whatever is computed from it: with 99 queries of which 1 in 100 loses much, the percentile bootstrap
    holds the truth in 90 % of runs, Student's t in 92 %, the studentized bootstrap in 87 %, Hall's skewness correction and BCa in
    88 %. Where all that is lost is lost by one query in a hundred, they hold it in 78 %. So two queries join those that are
    resampled, one each way, which change by as much as the one that changed most, and by a quarter of a query's value at least.
    Then it is 98 %, and 93 % at worst. They make the interval wider by a fifth to a half with 99 queries, and by less the more there
    are. Where no query ever loses much, 99 of them hold the truth more often than it says, in up to 100 %. It is the percentile
    bootstrap's at Hesterberg's expanded level.

    Args:
        baseline: query id to value.
        candidate: likewise, of the same queries; their order does not matter.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap resamples; 10,000, fewer above 4,000 queries, when left out.
        confidence: in (0, 1).

    Raises:
        MeasureError: other or too few queries, a value that is not finite, or a baseline whose mean is not positive.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv:1411.5279, section 4.2. The two queries are
    to a mean what Agresti and Coull's two successes and two failures are to a proportion (1998, The American Statistician 52(2)).
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
    resampled = _with_unseen(before, after, point)
    if resamples is None:
        resamples = min(RESAMPLES_MAX, max(RESAMPLES_MIN, RESAMPLED_ELEMENTS // n))

    def relative_change(resampled_before: NDArray[np.float64], resampled_after: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        # A resample of zero-valued queries only has no relative change: NaN, left out below.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(resampled_after.sum(axis) / resampled_before.sum(axis) - 1)

    with warnings.catch_warnings():
        # scipy's own interval is not used, and what it says of NaN resamples is dealt with below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            resampled,
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
    if after.min() >= 0:
        low = max(low, -1.0)  # the two queries added may fall below zero, the metric cannot
    return Change(point=point, low=float(low), high=float(high), confidence=confidence, n=n)


def _with_unseen(before: NDArray[np.float64], after: NDArray[np.float64], change: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sample and two queries of mean value that stand for what it has missed, one each way; the ratio of the means stays.

    Args:
        before: (queries,).
        after: (queries,).
        change: of their means, relative.
    """
    mean = before.mean()
    largest = max(float(np.abs(after - (1 + change) * before).max()), UNSEEN_MIN * mean)
    typical = (1 + change) * mean
    return np.append(before, [mean, mean]), np.append(after, [typical - largest, typical + largest])


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


def process_rounds(rounds: int, processes: int) -> list[range]:
    """Which rounds each process of a model has: shared out evenly, in the order of time; at least one each."""
    processes = min(processes, rounds)
    return [range(rounds * process // processes, rounds * (process + 1) // processes) for process in range(processes)]


def ratio_interval(
    baseline: Sequence[ArrayLike], candidate: Sequence[ArrayLike], *, processes: int = 1, confidence: float = 0.95
) -> Interval:
    """How many times faster the candidate is.

    A round times both, one after the other, so what slows the machine for seconds cancels within the round. But a process may be
    slower than the next one for its whole life, in every round: with processes, they alone are the observations. Each gives the
    median ratio of its rounds, and the interval is Student's on their logarithms. The order statistics of all rounds, as if they
    were independent, hold the truth in 82 % of simulated runs with three processes that differ by 2 %; a bootstrap of processes holds
    it in 71 %, as three values cannot tell how far they spread without a distribution assumed. This one does in 93-97 %.

    Args:
        baseline: one array of latencies per round.
        candidate: likewise, the same number of rounds, in the same order.
        processes: how many processes the rounds are shared out among, as `process_rounds` does. With 1 the interval is that of the
            median over rounds and holds for those two processes only.
        confidence: in (0, 1).

    Returns:
        above 1 where the candidate is faster. `bounded` is false below 6 rounds of one process, at 95 %.

    Raises:
        MeasureError: unequal numbers of rounds, or a round without positive samples.

    Source: Kalibera and Jones 2013, "Rigorous Benchmarking in Reasonable Time", ISMM: repeat, and take the variance, at the
    highest level that varies.
    """
    return _level_interval(ratio_observations(baseline, candidate, processes=processes), min(processes, len(baseline)), confidence)


def typical_interval(rounds: Sequence[ArrayLike], *, processes: int = 1, confidence: float = 0.95) -> Interval:
    """The typical latency of one model, of the medians of its rounds; otherwise as `ratio_interval`, in the samples' unit."""
    return _level_interval(
        _by_process(np.array([_round_median(samples) for samples in rounds]), processes), min(processes, len(rounds)), confidence
    )


def ratio_observations(baseline: Sequence[ArrayLike], candidate: Sequence[ArrayLike], *, processes: int = 1) -> NDArray[np.float64]:
    """How many times faster the candidate was; arguments and errors as those of `ratio_interval`.

    Returns:
        (processes,): the median over each one's rounds of baseline median / candidate median; (rounds,) where there is one process.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise MeasureError(f"latency ratio: {len(baseline)} rounds of the baseline, {len(candidate)} of the candidate; time them in pairs")
    before, after = (np.array([_round_median(samples) for samples in rounds]) for rounds in (baseline, candidate))
    return _by_process(before / after, processes)


def _by_process(values: NDArray[np.float64], processes: int) -> NDArray[np.float64]:
    if processes == 1:
        return values
    return np.array([np.median(values[rounds.start : rounds.stop]) for rounds in process_rounds(len(values), processes)])


def _level_interval(values: NDArray[np.float64], processes: int, confidence: float) -> Interval:
    """Of positive values: rounds of one process, or one value a process."""
    from scipy import stats

    if processes == 1:
        return percentile_interval(values, 50, confidence=confidence).model_copy(update={"of": "rounds"})
    logs = np.log(values)
    half_width = float(stats.t.ppf((1 + confidence) / 2, processes - 1) * stats.sem(logs))
    point = float(logs.mean())
    return _of_logarithms(point, half_width, confidence=confidence, n=processes, of="processes")


def _of_logarithms(point: float, half_width: float, *, confidence: float, n: int, of: Observed, bounded: bool = True) -> Interval:
    """The interval of a positive figure from that of its logarithm."""
    low, high = math.exp(point - half_width), math.exp(point + half_width)
    return Interval(point=math.exp(point), low=low, high=high, confidence=confidence, n=n, of=of, bounded=bounded)


def _round_median(samples: ArrayLike) -> float:
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0 or not (np.isfinite(values).all() and values.min() > 0):
        raise MeasureError("latency ratio: a round holds no samples, or one that is not positive; measure again")
    return float(np.median(values))


def unpaired_ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    of: Literal["rounds", "processes"] = "rounds",
    confidence: float = 0.95,
    deviation: float = 0.0,
) -> Interval:
    """The quotient of two figures that were measured in separate runs, such as the speed-ups of two artifacts.

    Processes by Welch's test on logarithms. Rounds by Yuen's, which is Welch's without the largest and smallest fifth: the rounds
    that something disturbed do not move it. Combining the two medians' own intervals (Zou and Donner 2008) was tried for rounds and
    holds the truth in 99 % of runs, not 95 %: wider than need be.

    Args:
        numerator: (rounds,) or (processes,), each one's figure, positive.
        denominator: likewise, of another run; the number may differ.
        of: which of the two.
        confidence: in (0, 1).
        deviation: standard deviation of what moves the quotient's logarithm from run to run and not from round to round; 0.01 is
            about 1 %.

    Returns:
        `n` is that of the run with fewer. `bounded` is false below 6 rounds, where nothing can be trimmed.

    Raises:
        MeasureError: fewer than 2, or a figure that is not positive.

    Source: Yuen 1974, "The two-sample trimmed t for unequal population variances", Biometrika 61(1).
    """
    from scipy import stats

    above, below = (np.asarray(values, dtype=np.float64).ravel() for values in (numerator, denominator))
    n = min(above.size, below.size)
    if n < 2 or not all(np.isfinite(values).all() and values.min() > 0 for values in (above, below)):
        raise MeasureError(f"quotient of two runs: {above.size} and {below.size} {of}; 2 at least, all positive, are wanted; measure again")
    logs = np.log(above), np.log(below)
    trimmed = TRIMMED if of == "rounds" else 0.0
    point = float(stats.trim_mean(logs[0], trimmed) - stats.trim_mean(logs[1], trimmed))
    half_width = 0.0
    # Values that are all alike have no error, and scipy no degrees of freedom for it.
    if any(np.ptp(stats.trimboth(np.sort(values), trimmed)) > 0 for values in logs):
        with warnings.catch_warnings():
            # One of the two may be without variance; the other's is enough.
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            ends = stats.ttest_ind(*logs, equal_var=False, trim=trimmed).confidence_interval(confidence)
        half_width = float(ends.high - ends.low) / 2
    half_width = math.hypot(half_width, deviation * NormalDist().inv_cdf((1 + confidence) / 2))
    bounded = of == "processes" or n >= ROUNDS_TRIMMED_MIN
    return _of_logarithms(point, half_width, confidence=confidence, n=n, of=of, bounded=bounded)


def noise_doubts(rounds: Sequence[ArrayLike], processes: int = 1) -> list[str]:
    """What makes a model's latency figures at one length doubtful, in words.

    Args:
        rounds: its latencies in nanoseconds, an array a round, in the order of time.
        processes: how many processes the rounds are shared out among.
    """
    medians = np.array([_round_median(samples) for samples in rounds])
    doubts = []
    typical = _by_process(medians, processes) if processes > 1 else np.array([np.median(medians)])
    per_process = [len(each) for each in process_rounds(len(medians), processes)]
    quarter, three_quarters = np.percentile(medians / np.repeat(typical, per_process), [25, 75])
    if three_quarters - quarter > SPREAD_MAX:
        doubts.append(f"the middle half of the rounds spreads over more than {SPREAD_MAX:.0%}; something else used the machine")
    if typical.max() > (1 + PROCESSES_DIFFER_MAX) * typical.min():
        doubts.append(f"the processes of a model differ by more than {PROCESSES_DIFFER_MAX:.0%}; more processes would narrow the interval")
    half = len(medians) // 2
    drift = float(np.median(medians[-half:]) / np.median(medians[:half]) - 1) if half else 0.0
    if abs(drift) > DRIFT_MAX:
        pace = "slower" if drift > 0 else "faster"
        doubts.append(f"the second half of the rounds is over {DRIFT_MAX:.0%} {pace} than the first; the clock rate or the load moved")
    return doubts
