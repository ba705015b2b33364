"""The intervals against known truths: a small, seeded version of bench/studies/simulate_intervals.py, which prints more."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bench.studies import simulate_intervals as bench
from optbench.errors import MeasureError
from optbench.measure.sample_size import SETTLING_PROBABILITY, samples_needed
from optbench.measure.statistics import Interval, Observed, ratio_interval, unpaired_ratio_interval

RUNS = 300


def error(share: float, runs: int = RUNS) -> float:
    """Three binomial standard errors."""
    return 3 * math.sqrt(share * (1 - share) / runs)


def interval(point: float, half: float, n: int, *, of: Observed = "queries", bounded: bool = True) -> Interval:
    return Interval(point=point, low=point - half, high=point + half, confidence=0.95, n=n, of=of, bounded=bounded)


def within_the_bar(held: float) -> bool:
    """92-98 %, and three standard errors of the simulation on either side."""
    return 0.92 - error(0.92) < held < min(1, 0.98 + error(0.98))


def test_population_loses_exactly_what_it_is_told_to() -> None:
    before, after = bench.population(0.01, bench.HARSH)
    assert after.mean() / before.mean() - 1 == pytest.approx(-0.01, abs=1e-9)
    # Most queries do not change, and some lose a fifth or more.
    assert np.mean(before == after) > 0.5
    assert 0.01 < np.mean(after < 0.81 * before) < 0.06


@pytest.mark.parametrize("n", [99, 400])
def test_accuracy_interval_holds_the_true_loss_and_raises_no_false_alarm(n: int) -> None:
    for loss in (0.0, 0.01):
        found = bench.simulate(bench.accuracy_case(n, loss), RUNS)
        assert within_the_bar(found.held)
        assert found.called_loss <= 0.05


def test_accuracy_interval_holds_the_true_change_of_real_queries() -> None:
    populations = {name: (before, after) for name, before, after in bench.real_populations()}
    for name in ("Chorus, dynamic int8 per channel", "XQuAD-R en, static int8, either order"):
        found = bench.simulate(bench.change_case(name, *populations[name], 99 if "Chorus" in name else 400), RUNS)
        assert within_the_bar(found.held)
        assert found.called_loss <= 0.05


def test_loss_beyond_the_limit_never_passes_more_often_than_the_interval_allows() -> None:
    found = bench.simulate(bench.accuracy_case(400, 0.015), RUNS)
    assert found.outcomes["pass"] <= 0.025 + error(0.025)
    assert found.outcomes["inconclusive"] > 0.5


@pytest.mark.parametrize("between", [0.0, 0.03])
def test_latency_interval_holds_the_true_ratio_though_processes_differ_and_the_machine_drifts(between: float) -> None:
    for speedup in (1.0, 2.25):
        found = bench.simulate(bench.latency_case(18, 6, speedup, between=between), RUNS)
        assert within_the_bar(found.held)
        assert found.called_loss <= 0.05


def test_rounds_taken_for_independent_hold_it_too_seldom() -> None:
    def by_rounds(*taken: list[NDArray[np.float64]]) -> Interval:
        return ratio_interval(*taken, processes=1)

    # What the processes are there for: without them the same runs cover far less.
    assert bench.simulate(bench.latency_case(15, 3, 2.25, between=0.03, judged=by_rounds), RUNS).held < 0.85


def test_interval_of_two_runs_holds_the_true_change_though_the_second_day_is_slower() -> None:
    for slower in (0.0, 0.1):
        found = bench.simulate(bench.two_runs_case(slower), RUNS)
        assert within_the_bar(found.held)
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
    with pytest.raises(MeasureError, match="expected at least 2, all positive"):
        unpaired_ratio_interval([1.0, 1.0], broken)


def test_settled_interval_needs_no_more_samples() -> None:
    assert samples_needed(interval(0.0, 0.01, 100), -0.01) == 0
    assert samples_needed(interval(-0.03, 0.01, 100), -0.01) == 0


def test_estimate_on_the_limit_wants_sixty_times_the_queries() -> None:
    # With N queries in all the estimate has moved by an error of sqrt(1/100 - 1/N), and is within 1.96 sqrt(1/N) of the limit with a
    # chance of 20 % where that is 0.2533 of it: N = 100 ((1.96 / 0.2533)^2 + 1) = 6087. Two digits of what is missing.
    assert samples_needed(interval(-0.01, 0.02, 100), -0.01) == 6000


def test_nearer_the_limit_wants_more_and_below_it_as_many_as_above() -> None:
    wanted = [samples_needed(interval(-0.01 + distance, 0.02, 99), -0.01) for distance in (0.015, 0.01, 0.005, -0.005)]
    assert wanted[0] < wanted[1] < wanted[2] == wanted[3]


def test_further_queries_look_at_the_end_that_faces_the_limit() -> None:
    skewed = Interval(point=-0.005, low=-0.02, high=0.0, confidence=0.95, n=100, of="queries")
    assert samples_needed(skewed, -0.01) > 3 * samples_needed(skewed, -0.001) > 0


def test_too_few_rounds_want_at_least_those_that_bound_a_median() -> None:
    assert samples_needed(interval(2.0, 0.01, 3, of="rounds", bounded=False), 1.0) == 5
    assert samples_needed(interval(2.0, 0.0, 5, of="rounds", bounded=False), 1.0) == 5


def test_processes_are_counted_one_by_one_and_students_quantile_falls_with_them() -> None:
    # Two processes reach 12.7 standard errors, three 4.3: one more does far more than a quarter's worth.
    assert samples_needed(interval(2.5, 0.6, 2, of="processes"), 2.0) == 1


def test_what_is_asked_for_settles_it_as_often_as_promised() -> None:
    for settle, runs in ((bench.settled_queries, 60), (bench.settled_processes, 160)):
        left_open, settled, wrong = settle(runs)
        opened = round(left_open * runs)
        assert opened > 25
        assert abs(settled - SETTLING_PROBABILITY) < error(SETTLING_PROBABILITY, opened)
        assert wrong <= 0.025 + error(0.025, opened)
