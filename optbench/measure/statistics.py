"""Confidence intervals of latencies, ratios and accuracy changes.

Accuracy differences are paired over queries and bootstrapped. Latency ratios are computed round by round and aggregated per
process, because runs of one process are not independent. Percentiles get order-statistic intervals, which hold for any distribution.
`bench/studies/simulate_intervals.py` simulates the coverage of each; the functions give the reasons.
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
    "noise_warnings",
    "paired_relative_change",
    "percentile_interval",
    "process_rounds",
    "ratio_interval",
    "ratio_observations",
    "typical_interval",
    "unpaired_ratio_interval",
]

# Keeps the index matrices of a bootstrap batch below 64 MB.
BATCH_ELEMENTS = 4_000_000
# Monte Carlo error of an interval's end: 1.7 % of the half-width with 10,000 resamples, 3.8 % with 2,000. For 10,000 queries, 4,000
# resamples take a second.
RESAMPLES_MIN, RESAMPLES_MAX = 2_000, 10_000
RESAMPLED_ELEMENTS = 40_000_000
# The least change of an unseen query, as a share of the mean query's value. Simulated worst coverage with 99 queries: 83 % with 0,
# 91 % with 0.2, 94 % with 0.3, where the interval is a sixth wider than with 0.
UNSEEN_MIN = 0.25
# Round medians on a quiet machine stay within 1-3 %; a second busy process moved them by 30-70 %.
SPREAD_MAX = 0.10
DRIFT_MAX = 0.05
PROCESSES_DIFFER_MAX = 0.20
# Yuen's own choice: the share trimmed at each end, one of 6 rounds, none of fewer than 5.
TRIMMED = 0.2
ROUNDS_TRIMMED_MIN = 6


Observed = Literal["samples", "queries", "rounds", "processes"]
"""The independent observations of an interval."""


class Interval(Frozen):
    """An estimate with its confidence interval, in the samples' unit.

    Attributes:
        confidence: in (0, 1).
        n: number of independent observations.
        of: what they are; `processes` are fresh processes of a model.
        bounded: false if there are too few samples for the confidence; `low` and `high` are then the smallest and largest sample.
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

    Most queries do not change, and a few lose much. A sample without those gives too narrow an interval, whatever the method. So two
    pseudo-queries are added before resampling, one gaining and one losing as much as the query that changed most, and at least a
    quarter of a mean query's value. The interval is the percentile bootstrap's at Hesterberg's expanded level. Its coverage is 93 % at
    worst; without the pseudo-queries it is 78 % if a few queries make up the whole loss. bench/LOG.md, M2, compares the methods.

    Both arguments map a query's id to its value, in any order. By default there are 10,000 `resamples`, fewer above 4,000 queries.

    Raises:
        MeasureError: different or too few queries, a value that is not finite, or a baseline whose mean is not positive.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv:1411.5279, section 4.2. The two pseudo-
    queries are the analog of Agresti and Coull's two added successes and failures (1998, The American Statistician 52(2)).
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
        raise MeasureError(f"paired values: {n} queries; an interval needs at least 2, and about 100 to be useful")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise MeasureError("paired values: a value is NaN or infinite; the model that produced it is broken")
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
        # A resample of zero-valued queries has no relative change: NaN, dropped below.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(resampled_after.sum(axis) / resampled_before.sum(axis) - 1)

    with warnings.catch_warnings():
        # scipy's own interval is not used, and NaN resamples are dropped below.
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
        low = max(low, -1.0)  # the pseudo-queries may be below zero, the metric cannot
    return Change(point=point, low=float(low), high=float(high), confidence=confidence, n=n)


def _with_unseen(before: NDArray[np.float64], after: NDArray[np.float64], change: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Append two pseudo-queries of mean value, one gaining and one losing; the ratio of means stays 1 + `change`."""
    mean = before.mean()
    largest = max(float(np.abs(after - (1 + change) * before).max()), UNSEEN_MIN * mean)
    typical = (1 + change) * mean
    return np.append(before, [mean, mean]), np.append(after, [typical - largest, typical + largest])


def percentile_interval(samples: ArrayLike, q: float, *, confidence: float = 0.95) -> Interval:
    """A percentile of samples with its distribution-free interval; `q` is in percent.

    The ends are order statistics with binomial ranks: the limit of a percentile's bootstrap with infinitely many resamples, exact for
    any distribution. It needs at least log((1 - confidence) / 2) / log(max(q, 100 - q) / 100) samples:
    6 for a median at 95 %, 36 for p90, 368 for p99.

    Raises:
        MeasureError: no samples, or one that is not finite.

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2, as in `scipy.stats.quantile_test`.
    """
    from scipy import stats

    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise MeasureError(f"p{q:g}: {values.size} samples; expected at least one, all finite; measure again")
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
    """The rounds of each process of a model: divided evenly, in order of time, at least one each."""
    processes = min(processes, rounds)
    return [range(rounds * process // processes, rounds * (process + 1) // processes) for process in range(processes)]


def ratio_interval(
    baseline: Sequence[ArrayLike], candidate: Sequence[ArrayLike], *, processes: int = 1, confidence: float = 0.95
) -> Interval:
    """The candidate's speed-up over the baseline.

    A round times both, one after the other, so a slow spell of the machine cancels within the round. But a process may be slower than
    the next for its whole life: with several processes, these are the observations. Each contributes the median ratio of its rounds,
    and the interval is Student's t on their logarithms; bench/LOG.md, M1, compares its coverage with that of other methods.

    Both arguments hold one array of latencies per round, in the same order; `process_rounds` divides the rounds among `processes`. With
    one process, the interval is of the median over rounds and holds for those two processes only.

    Returns:
        Above 1 if the candidate is faster. At 95 %, `bounded` is false below 6 rounds of one process.

    Raises:
        MeasureError: unequal numbers of rounds, or a round without samples or with one that is not positive.

    Source: Kalibera and Jones 2013, "Rigorous Benchmarking in Reasonable Time", ISMM: repeat, and take the variance, at the
    highest level that varies.
    """
    return _level_interval(ratio_observations(baseline, candidate, processes=processes), min(processes, len(baseline)), confidence)


def typical_interval(rounds: Sequence[ArrayLike], *, processes: int = 1, confidence: float = 0.95) -> Interval:
    """The typical latency of one model, from its round medians, in the samples' unit; otherwise as `ratio_interval`."""
    return _level_interval(
        _by_process(np.array([_round_median(samples) for samples in rounds]), processes), min(processes, len(rounds)), confidence
    )


def ratio_observations(baseline: Sequence[ArrayLike], candidate: Sequence[ArrayLike], *, processes: int = 1) -> NDArray[np.float64]:
    """The observed speed-ups of the candidate; arguments and errors as in `ratio_interval`.

    Returns:
        (processes,): each process's median over rounds of baseline median / candidate median; with one process, (rounds,).
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
    """The interval of positive values: rounds of one process, or one value per process."""
    from scipy import stats

    if processes == 1:
        return percentile_interval(values, 50, confidence=confidence).model_copy(update={"of": "rounds"})
    logs = np.log(values)
    half_width = float(stats.t.ppf((1 + confidence) / 2, processes - 1) * stats.sem(logs))
    point = float(logs.mean())
    return _of_logarithms(point, half_width, confidence=confidence, n=processes, of="processes")


def _of_logarithms(point: float, half_width: float, *, confidence: float, n: int, of: Observed, bounded: bool = True) -> Interval:
    """Transform the interval of a logarithm."""
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
    """The ratio of two figures measured in separate runs, such as the speed-ups of two artifacts.

    Processes: Welch's test on logarithms. Rounds: Yuen's, which trims the largest and smallest fifth, so disturbed rounds do not move
    it. For rounds, combining the medians' intervals (Zou and Donner 2008) has 99 % coverage: wider than necessary.

    Args:
        numerator: (rounds,) or (processes,), positive.
        denominator: of another run, in the same form; the number may differ.
        of: what the observations are.
        confidence: in (0, 1).
        deviation: standard deviation of the ratio's logarithm from run to run; 0.01 is about 1 %.

    Returns:
        `n` is the smaller of the two. `bounded` is false below 6 rounds, where nothing can be trimmed.

    Raises:
        MeasureError: fewer than 2, or a figure that is not positive.

    Source: Yuen 1974, "The two-sample trimmed t for unequal population variances", Biometrika 61(1).
    """
    from scipy import stats

    above, below = (np.asarray(values, dtype=np.float64).ravel() for values in (numerator, denominator))
    n = min(above.size, below.size)
    if n < 2 or not all(np.isfinite(values).all() and values.min() > 0 for values in (above, below)):
        raise MeasureError(f"ratio of two runs: {above.size} and {below.size} {of}; expected at least 2, all positive; measure again")
    logs = np.log(above), np.log(below)
    trimmed = TRIMMED if of == "rounds" else 0.0
    point = float(stats.trim_mean(logs[0], trimmed) - stats.trim_mean(logs[1], trimmed))
    half_width = 0.0
    # scipy has no degrees of freedom for constant values; their error is 0.
    if any(np.ptp(stats.trimboth(np.sort(values), trimmed)) > 0 for values in logs):
        with warnings.catch_warnings():
            # One of the two may be constant.
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            ends = stats.ttest_ind(*logs, equal_var=False, trim=trimmed).confidence_interval(confidence)
        half_width = float(ends.high - ends.low) / 2
    half_width = math.hypot(half_width, deviation * NormalDist().inv_cdf((1 + confidence) / 2))
    bounded = of == "processes" or n >= ROUNDS_TRIMMED_MIN
    return _of_logarithms(point, half_width, confidence=confidence, n=n, of=of, bounded=bounded)


def noise_warnings(rounds: Sequence[ArrayLike], processes: int = 1) -> list[str]:
    """Warn about noise in a model's latencies at one length, given in one array per round, in order of time."""
    medians = np.array([_round_median(samples) for samples in rounds])
    found = []
    typical = _by_process(medians, processes) if processes > 1 else np.array([np.median(medians)])
    per_process = [len(each) for each in process_rounds(len(medians), processes)]
    quarter, three_quarters = np.percentile(medians / np.repeat(typical, per_process), [25, 75])
    if three_quarters - quarter > SPREAD_MAX:
        found.append(f"the middle half of the rounds spreads over more than {SPREAD_MAX:.0%}; something else used the machine")
    if typical.max() > (1 + PROCESSES_DIFFER_MAX) * typical.min():
        found.append(f"the processes of a model differ by more than {PROCESSES_DIFFER_MAX:.0%}; more processes would narrow the interval")
    half = len(medians) // 2
    drift = float(np.median(medians[-half:]) / np.median(medians[:half]) - 1) if half else 0.0
    if abs(drift) > DRIFT_MAX:
        pace = "slower" if drift > 0 else "faster"
        found.append(f"the second half of the rounds is over {DRIFT_MAX:.0%} {pace} than the first; the clock rate or the load moved")
    return found
