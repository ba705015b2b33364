import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from optbench.errors import MeasureError
from optbench.measure.statistics import (
    noise_warnings,
    paired_relative_change,
    percentile_interval,
    process_rounds,
    ratio_interval,
    typical_interval,
)


def by_id(values: NDArray[np.float64] | list[float]) -> dict[str, float]:
    return {f"q{index}": float(value) for index, value in enumerate(values)}


def drawn_queries(generator: np.random.Generator, n: int, loss: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """nDCG-like pairs: many queries do not change, others move by a few hundredths; the mean falls by `loss` of 0.75."""
    before = 0.5 + 0.5 * generator.random(n)
    change = np.where(generator.random(n) < 0.4, generator.laplace(-loss * 0.75 / 0.4, 0.04, n), 0.0)
    return before, before + change


def test_change_is_the_ratio_of_the_means() -> None:
    change = paired_relative_change({"a": 1.0, "b": 0.5}, {"b": 0.7, "a": 0.5})
    assert change.point == pytest.approx(1.2 / 1.5 - 1)
    assert change.low <= change.point <= change.high
    assert (change.n, change.confidence) == (2, 0.95)


def test_same_values_give_no_change_and_no_doubt() -> None:
    change = paired_relative_change(by_id([0.1, 0.9, 0.4]), by_id([0.1, 0.9, 0.4]))
    assert (change.point, change.low, change.high) == (0, 0, 0)


def test_same_seed_gives_the_same_interval() -> None:
    before, after = (by_id(values) for values in drawn_queries(np.random.default_rng(0), 60, 0.01))
    assert paired_relative_change(before, after, seed=4) == paired_relative_change(before, after, seed=4)
    assert paired_relative_change(before, after, seed=4) != paired_relative_change(before, after, seed=5)


def test_pairing_makes_the_interval_narrower_than_the_spread_between_queries() -> None:
    before, after = drawn_queries(np.random.default_rng(0), 400, 0.0)
    shuffled = np.random.default_rng(1).permutation(after)
    paired = paired_relative_change(by_id(before), by_id(after))
    assert paired.half_width < 0.3 * paired_relative_change(by_id(before), by_id(shuffled)).half_width


def test_large_sample_interval_agrees_with_the_delta_method() -> None:
    before, after = drawn_queries(np.random.default_rng(2), 2000, 0.01)
    change = paired_relative_change(by_id(before), by_id(after))
    residual = (after - (1 + change.point) * before) / before.mean()
    # The two queries that the interval adds weigh little among 2000.
    residual = np.append(residual, [-np.abs(residual).max(), np.abs(residual).max()])
    expected = 1.96 * residual.std(ddof=1) / 2002**0.5
    # An end of 10,000 resamples has a standard error of 1.7 % of the half width: 3 errors of both ends.
    assert change.half_width == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_interval_holds_the_true_change_as_often_as_it_claims(loss: float) -> None:
    generator = np.random.default_rng(11)
    truth = -loss  # by construction: the mean before is 0.75, the mean change -loss * 0.75
    runs, held, called_loss = 400, 0, 0
    for run in range(runs):
        before, after = drawn_queries(generator, 400, loss)
        change = paired_relative_change(by_id(before), by_id(after), seed=run, resamples=1000)
        held += change.low <= truth <= change.high
        called_loss += change.high < 0
    # 400 runs of a 95 % interval miss by a binomial standard error of 1.1 %: 3 of them are 3.3 %.
    assert 0.917 < held / runs <= 1 - 0.017
    if loss == 0:
        assert called_loss / runs <= 0.05


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}, "2 queries are in one result only, 'b' first"),
        ({"a": 1.0}, {"a": 1.0}, "1 queries; an interval needs at least 2"),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": float("nan")}, "a value is NaN"),
        ({"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, "the baseline's mean is zero or less"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(before: dict[str, float], after: dict[str, float], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        paired_relative_change(before, after)


def test_resamples_of_zero_queries_only_do_not_break_the_interval() -> None:
    # One of 5 queries is not zero: some resamples lack it, and the two that the interval adds, and have no relative change.
    change = paired_relative_change(by_id([0, 0, 0, 0, 1]), by_id([0, 0, 0, 0, 0.5]))
    assert change.point == -0.5
    assert -1 <= change.low < -0.5 < change.high < 0.5


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_interval_is_finite_and_ordered_for_any_metric_values(pairs: list[tuple[float, float]]) -> None:
    change = paired_relative_change(by_id([pair[0] for pair in pairs]), by_id([pair[1] for pair in pairs]), resamples=200)
    assert np.isfinite([change.point, change.low, change.high]).all()
    assert -1 <= change.low <= change.high


def test_percentiles_have_the_known_order_statistics_as_ends() -> None:
    # Conover 1999, section 3.2: the 95 % interval of a median of 20 runs from the 6th to the 15th value.
    interval = percentile_interval(np.arange(1, 21), 50)
    assert (interval.point, interval.low, interval.high, interval.bounded) == (10.5, 6, 15, True)


@pytest.mark.parametrize(("q", "needed"), [(50, 6), (90, 36), (99, 368)])
def test_too_few_samples_for_a_tail_are_called_unbounded(q: float, needed: int) -> None:
    assert percentile_interval(np.arange(needed), q).bounded
    short = percentile_interval(np.arange(needed - 1), q)
    assert not short.bounded
    assert short.high == needed - 2


@pytest.mark.parametrize("q", [50, 90, 99])
def test_percentile_interval_holds_the_true_percentile_of_skewed_latencies(q: float) -> None:
    generator = np.random.default_rng(5)
    truth = stats.lognorm.ppf(q / 100, 0.3)
    intervals = [percentile_interval(generator.lognormal(0, 0.3, 500), q) for _ in range(300)]
    held = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    # At least 95 % by theory, less 3 binomial standard errors of 300 runs.
    assert held > 0.95 - 3 * (0.95 * 0.05 / 300) ** 0.5


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")]])
def test_percentile_of_nothing_is_refused(samples: list[float]) -> None:
    with pytest.raises(MeasureError, match="p99: "):
        percentile_interval(samples, 99)


def test_speed_up_is_above_one_when_the_candidate_is_faster() -> None:
    ratio = ratio_interval([[20, 21, 22]] * 8, [[10, 10.5, 11]] * 8)
    assert (ratio.point, ratio.low, ratio.high, ratio.n) == (2, 2, 2, 8)


def test_drift_that_hits_both_alike_cancels_in_the_ratio() -> None:
    generator = np.random.default_rng(0)
    slow = np.linspace(1, 1.7, 15)  # a second process takes more and more of the machine
    baseline = [pace * generator.normal(100, 1, 10) for pace in slow]
    candidate = [pace * generator.normal(40, 0.4, 10) for pace in slow]
    ratio = ratio_interval(baseline, candidate)
    assert ratio.low < 2.5 < ratio.high
    # Medians of 10 samples with 1 % noise differ by 0.56 %; the ratio's median over 15 rounds is known to some 0.25 %.
    assert ratio.half_width < 0.02 * 2.5


@pytest.mark.parametrize("n_rounds", [6, 15])
def test_ratio_interval_holds_the_true_ratio_with_rare_stalls(n_rounds: int) -> None:
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(200):
        stalls = np.where(generator.random((2, n_rounds)) < 0.1, 1.5, 1.0)
        rounds = [
            [stalls[side, turn] * generator.normal(pace, 0.02 * pace, 8) for turn in range(n_rounds)] for side, pace in ((0, 90), (1, 40))
        ]
        interval = ratio_interval(*rounds)
        held += interval.low <= 90 / 40 <= interval.high
    assert held / 200 > 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5


def test_rounds_are_shared_out_evenly_in_the_order_of_time() -> None:
    assert [list(each) for each in process_rounds(7, 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [list(each) for each in process_rounds(2, 6)] == [[0], [1]]


def test_processes_give_students_interval_of_their_median_ratios() -> None:
    # Three processes of three rounds; in each one round was disturbed, which the median does not see.
    ratios = [2.0, 2.0, 9.0, 2.2, 0.1, 2.2, 2.42, 2.42, 2.42]
    found = ratio_interval([[ratio] for ratio in ratios], [[1.0]] * 9, processes=3)
    # Logarithms spaced by log 1.1: their deviation is log 1.1 and t at 97.5 % with 2 degrees of freedom 4.303.
    half_width = stats.t.ppf(0.975, 2) * np.log(1.1) / 3**0.5
    assert np.log([found.low, found.point, found.high]) == pytest.approx(np.log(2.2) + half_width * np.array([-1, 0, 1]))
    assert (found.n, found.of, found.bounded) == (3, "processes", True)


def test_typical_latency_is_in_the_unit_of_its_samples() -> None:
    rounds = [[4.0, 5.0, 90.0], [5.0], [5.0], [5.0, 5.0]]
    found = typical_interval(rounds, processes=2)
    assert (found.low, found.point, found.high) == pytest.approx((5, 5, 5))
    assert typical_interval(rounds).of == "rounds"


def test_two_unseen_queries_widen_the_interval_and_leave_the_change() -> None:
    # 98 queries fall by a hundredth, one by a half: the two join at 1 +- what that one moved beyond the mean.
    before = np.ones(99)
    after = np.where(np.arange(99) == 0, 0.5, 0.99)
    change = paired_relative_change(by_id(before), by_id(after))
    assert change.point == pytest.approx(after.mean() - 1)
    residual = after - after.mean()
    deviation = np.sqrt((residual @ residual + 2 * np.abs(residual).max() ** 2) / 101)
    # The normal approximation of a sum in which three of 101 carry nearly all the variance is good to a fifth.
    assert change.half_width == pytest.approx(1.984 * deviation / 101**0.5, rel=0.2)
    assert change.of == "queries"


def test_many_queries_take_fewer_resamples_and_say_the_same() -> None:
    before, after = (by_id(values) for values in drawn_queries(np.random.default_rng(3), 10_000, 0.01))
    fewer, more = (paired_relative_change(before, after, resamples=count) for count in (None, 6000))
    assert fewer.half_width == pytest.approx(more.half_width, rel=0.1)


def test_five_rounds_are_too_few_for_a_bounded_ratio() -> None:
    assert not ratio_interval([[2.0]] * 5, [[1.0]] * 5).bounded


@pytest.mark.parametrize(("baseline", "candidate"), [([[1.0]], [[1.0], [1.0]]), ([], []), ([[]], [[1.0]]), ([[0.0]], [[1.0]])])
def test_rounds_that_cannot_be_paired_are_refused(baseline: list[list[float]], candidate: list[list[float]]) -> None:
    with pytest.raises(MeasureError, match="latency ratio"):
        ratio_interval(baseline, candidate)


def test_steady_rounds_leave_no_doubt() -> None:
    generator = np.random.default_rng(0)
    assert noise_warnings([generator.normal(1000, 10, 5) for _ in range(15)]) == []


def test_processes_that_differ_are_reported_as_such_and_not_as_load() -> None:
    generator = np.random.default_rng(0)
    rounds = [generator.normal(1400 if turn in (3, 4, 5, 12, 13, 14) else 1000, 10, 5) for turn in range(18)]
    assert noise_warnings(rounds, processes=6) == [
        "the processes of a model differ by more than 20%; more processes would narrow the interval"
    ]
    # Nothing in the same rounds of a single process tells its luck from another program's load.
    assert "something else used the machine" in noise_warnings(rounds)[0]


def test_rounds_that_scatter_are_reported() -> None:
    assert noise_warnings([[1000.0], [1300.0]] * 8) == [
        "the middle half of the rounds spreads over more than 10%; something else used the machine"
    ]


def test_rounds_that_drift_are_reported() -> None:
    assert noise_warnings([[1000.0]] * 8 + [[1080.0]] * 8) == [
        "the second half of the rounds is over 5% slower than the first; the clock rate or the load moved"
    ]
