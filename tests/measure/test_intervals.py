"""The intervals against known truths: a small, seeded version of bench/simulate_intervals.py, which prints more."""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from optbench.errors import MeasureError
from optbench.measure.statistics import (
    SETTLING_PROBABILITY,
    Interval,
    further_queries,
    further_rounds,
    paired_relative_change,
    ratio_interval,
    unpaired_ratio_interval,
)

BENCH = Path(__file__).parents[2] / "bench" / "simulate_intervals.py"
RUNS = 300


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulate_intervals", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def error(share: float, runs: int = RUNS) -> float:
    """Three binomial standard errors."""
    return 3 * math.sqrt(share * (1 - share) / runs)


def interval(point: float, half: float, n: int, *, bounded: bool = True) -> Interval:
    return Interval(point=point, low=point - half, high=point + half, confidence=0.95, n=n, bounded=bounded)


def test_population_loses_exactly_what_it_is_told_to(bench: ModuleType) -> None:
    before, after = bench.population(0.01, bench.HARSH)
    assert after.mean() / before.mean() - 1 == pytest.approx(-0.01, abs=1e-9)
    # Most queries do not change, and some lose a fifth or more.
    assert np.mean(before == after) > 0.5
    assert 0.01 < np.mean(after < 0.81 * before) < 0.06


def test_accuracy_interval_holds_the_true_loss_and_raises_no_false_alarm(bench: ModuleType) -> None:
    for loss in (0.0, 0.01):
        found = bench.simulate(bench.accuracy_case(400, loss), RUNS)
        assert 0.92 - error(0.92) < found.held < min(1, 0.98 + error(0.98))
        assert found.called_loss <= 0.05


def test_hundred_queries_cover_less_and_still_raise_no_false_alarm(bench: ModuleType) -> None:
    # One query in a hundred loses much, so a third of all samples hold none: no interval can know of what it has not seen.
    found = bench.simulate(bench.accuracy_case(99, 0.0), RUNS)
    assert found.held > 0.89 - error(0.89)
    assert found.called_loss <= 0.05


@pytest.mark.parametrize("rounds", [15, 25])
def test_latency_interval_holds_the_true_ratio_though_the_machine_drifts(bench: ModuleType, rounds: int) -> None:
    for speedup in (1.0, 2.25):
        found = bench.simulate(bench.latency_case(rounds, speedup), RUNS)
        assert 0.92 - error(0.92) < found.held < min(1, 0.98 + error(0.98))
        assert found.called_loss <= 0.05


def test_interval_of_two_runs_holds_the_true_change_though_the_second_day_is_slower(bench: ModuleType) -> None:
    for slower in (0.0, 0.1):
        found = bench.simulate(bench.two_runs_case(15, slower), RUNS)
        assert 0.92 - error(0.92) < found.held < min(1, 0.98 + error(0.98))
        assert found.called_loss <= 0.05


def test_quotient_of_two_runs_is_that_of_their_trimmed_geometric_means() -> None:
    old, new = np.array([2.0, 2, 2, 2, 2, 2, 9, 0.1]), np.array([3.0, 3, 3, 3, 3, 3, 0.1, 9])
    # One disturbed round at either end is trimmed: nothing is left that varies.
    found = unpaired_ratio_interval(new, old)
    assert (found.point, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert (found.n, found.bounded) == (8, True)


def test_quotient_agrees_with_welch_where_nothing_is_trimmed() -> None:
    old, new = np.exp([0.0, 0.02, 0.04, 0.06]), np.exp([0.1, 0.11, 0.12, 0.13])
    found = unpaired_ratio_interval(new, old)
    # Variances 2/3 and 1/6 of a thousandth over 4; Welch's 4.4 degrees of freedom; t at 97.5 % is 2.679.
    error = math.sqrt((2 / 3 + 1 / 6) * 1e-3 / 4)
    assert math.log(found.point) == pytest.approx(0.085)
    assert math.log(found.high / found.point) == pytest.approx(stats.t.ppf(0.975, 75 / 17) * error)
    assert not found.bounded


def test_quotient_widens_by_what_lies_between_runs() -> None:
    steady = np.full(15, 2.0)
    assert unpaired_ratio_interval(steady, steady, deviation=0.01).half_width == pytest.approx(0.0196, rel=0.01)


@pytest.mark.parametrize("broken", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_quotient_of_unfit_runs_is_refused(broken: list[float]) -> None:
    with pytest.raises(MeasureError, match="2 at least, all positive, are wanted"):
        unpaired_ratio_interval([1.0, 1.0], broken)


@pytest.mark.parametrize("further", [further_queries, further_rounds])
def test_settled_wants_nothing_further_and_a_tie_is_never_settled(further: Callable[[Interval, float], int | None]) -> None:
    assert further(interval(0.0, 0.01, 100), -0.01) == 0
    assert further(interval(-0.03, 0.01, 100), -0.01) == 0
    assert further(interval(-0.01, 0.02, 100), -0.01) is None
    # A thousandth of the half width away: a million times as many would be needed.
    assert further(interval(-0.01 + 2e-5, 0.02, 100), -0.01) is None


def test_half_the_distance_wants_four_times_the_queries() -> None:
    # (1 + 0.84 / 1.96)^2 = 2.04 for a chance of 80 %; 2^2 for the width: 810 of which 99 are there; two digits.
    near, nearer = (further_queries(interval(-limit, 0.02, 99), 0.0) for limit in (0.01, 0.005))
    assert (near, nearer) == (720, 3200)


def test_further_queries_look_at_the_end_that_faces_the_limit() -> None:
    skewed = Interval(point=-0.005, low=-0.02, high=0.0, confidence=0.95, n=100)
    assert further_queries(skewed, -0.01) == 1800  # by the distance to the low end, three times that to the limit
    assert further_queries(skewed, -0.001) == 220  # by the high end, 1.25 times


def test_too_few_rounds_want_at_least_those_that_bound_a_median() -> None:
    assert further_rounds(interval(2.0, 0.01, 3, bounded=False), 1.0) == 5
    assert further_rounds(interval(2.0, 0.0, 5, bounded=False), 1.0) == 5


def test_rounds_asked_for_settle_it_as_often_as_promised(bench: ModuleType) -> None:
    limit, asked, settled = 2.23, [], 0
    for seed in range(200):
        first = ratio_interval(*bench.run_of_rounds(np.random.default_rng(seed), 15, (2.25, 1.0)))
        # The count holds where the estimate is the truth: an interval of the usual width around the true 2.25.
        more = further_rounds(
            first.model_copy(update={"point": 2.25, "low": 2.25 - first.half_width, "high": 2.25 + first.half_width}), limit
        )
        asked.append(more or 0)
    rounds = 15 + int(np.median(asked))
    for seed in range(200):
        again = ratio_interval(*bench.run_of_rounds(np.random.default_rng(1000 + seed), rounds, (2.25, 1.0)))
        settled += again.low >= limit
    assert settled / 200 > SETTLING_PROBABILITY - error(SETTLING_PROBABILITY, 200)


def test_queries_asked_for_settle_it_as_often_as_promised(bench: ModuleType) -> None:
    before, after = bench.population(0.004, bench.GRADED)
    truth, limit = float(after.sum() / before.sum() - 1), -0.01

    def drawn(n: int, seed: int) -> Interval:
        chosen = np.random.default_rng(seed).integers(len(before), size=n)
        pair = ({str(row): float(value) for row, value in enumerate(values[chosen])} for values in (before, after))
        return paired_relative_change(*pair, seed=seed, resamples=1000)

    half = float(np.median([drawn(150, seed).half_width for seed in range(40)]))
    more = further_queries(interval(truth, half, 150), limit)
    assert more is not None
    assert more > 0
    settled = sum(drawn(150 + more, seed).low >= limit for seed in range(100, 250))
    assert settled / 150 > SETTLING_PROBABILITY - error(SETTLING_PROBABILITY, 150)
