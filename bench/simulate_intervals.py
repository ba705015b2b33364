"""Do the intervals hold what they claim? Coverage and false alarms, where the truth is known.

    python bench/simulate_intervals.py [--runs 2000]

Wanted: a 95 % interval holds the truth in 92-98 % of runs, and a change of zero is called a loss in at most 5 %. One row a
case; the cases marked * break a premise on purpose, to show what happens then.

Accuracy: a large population of queries with nDCG@10-like values whose true relative change is known exactly; each run draws
n queries of it. Most queries do not change, many move a little, a few lose much of their value.

Latency: rounds that time two models one after the other on a shared machine. Its pace drifts from round to round by a random
walk, spells of another process last some rounds, runs within a round share the round's luck, and single runs stall.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optbench.measure.statistics import Interval, paired_relative_change, ratio_interval, round_ratios, unpaired_ratio_interval

Values = NDArray[np.float64]
Draw = Callable[[int], Interval]

POPULATION = 100_000
RESAMPLES = 2000
RUNS_A_ROUND = 6


@dataclass(frozen=True)
class Case:
    """A truth, and how to draw an interval for it.

    Attributes:
        name: as printed; ends in * where a premise is broken on purpose.
        truth: the true figure.
        draw: the interval of one run, by its seed.
        worse_below: the figure from which down it is a loss: 0 for a change, 1 for a speed-up; None where that is not asked.
    """

    name: str
    truth: float
    draw: Draw
    worse_below: float | None = None


@dataclass(frozen=True)
class Found:
    """Shares of runs."""

    held: float
    called_loss: float


def simulate(case: Case, runs: int) -> Found:
    """Draw the case's interval `runs` times."""
    held = lost = 0
    for seed in range(runs):
        interval = case.draw(seed)
        held += interval.low <= case.truth <= interval.high
        lost += case.worse_below is not None and interval.high < case.worse_below
    return Found(held / runs, lost / runs)


@dataclass(frozen=True)
class Changes:
    """How queries change, as shares of all of them.

    Attributes:
        moved: that move a little, up or down.
        scale: of their Laplace distribution.
        large: that lose 20-60 % of their value.
    """

    moved: float
    scale: float
    large: float


# all-MiniLM-L6-v2 in static int8 against fp32, nDCG@10. Graded pools: 47 % of 437 queries move by a standard deviation of 0.04 and
# none falls by 0.2; of 99 others 28 % move and one falls by more. One relevant document among many: 7 % of 1,190 move, by 0.24.
GRADED = Changes(moved=0.45, scale=0.03, large=0.01)
SINGLE = Changes(moved=0.07, scale=0.17, large=0.0)
HARSH = Changes(moved=0.45, scale=0.03, large=0.03)


def population(loss: float, changes: Changes, seed: int = 0) -> tuple[Values, Values]:
    """Values of every query before and after, whose mean falls by exactly `loss`, relative."""
    generator = np.random.default_rng(seed)
    before = generator.beta(3, 1.3, POPULATION)
    kind = generator.random(POPULATION)
    before[kind < 0.05] = 0.0
    before[kind > 0.8] = 1.0
    fate = generator.random(POPULATION)
    moved = generator.laplace(0, changes.scale, POPULATION)
    hit = fate < changes.large
    small = (fate >= changes.large) & (fate < changes.large + changes.moved)
    fallen = before * (1 - generator.uniform(0.2, 0.6, POPULATION))

    def after(shift: float) -> Values:
        values = before.copy()
        values[hit] = fallen[hit]
        values[small] = np.clip(before[small] + moved[small] + shift, 0, 1)
        return values

    # The small movers make up for the few that lose much: their shift is found by bisection.
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if after(middle).mean() < (1 - loss) * before.mean() else (low, middle)
    return before, after(low)


def accuracy_case(n: int, loss: float, changes: Changes = GRADED, name: str = "accuracy") -> Case:
    """n queries out of the population."""
    before, after = population(loss, changes)

    def draw(seed: int) -> Interval:
        chosen = np.random.default_rng([n, seed]).integers(POPULATION, size=n)
        pair = ({str(row): float(value) for row, value in enumerate(values[chosen])} for values in (before, after))
        return paired_relative_change(*pair, seed=seed, resamples=RESAMPLES)

    return Case(
        f"{name}, {n} queries, true loss {100 * loss:.0f} %",
        float(after.sum() / before.sum() - 1),
        draw,
        worse_below=0.0 if loss == 0 else None,
    )


def run_of_rounds(
    generator: np.random.Generator, rounds: int, paces: tuple[float, ...], *, noise: float = 0.015, correlation: float = 0.0
) -> list[list[Values]]:
    """Latencies of several models by round, as one interleaved run takes them.

    Args:
        generator: of the noise.
        rounds: how many.
        paces: each model's true latency.
        noise: standard deviation of a block's own luck.
        correlation: of that luck from one round to the next; 0 where rounds are independent.
    """
    pace = np.cumsum(generator.normal(0, 0.02, rounds))
    spell = np.zeros(rounds)
    for start in np.flatnonzero(generator.random(rounds) < 0.08):
        spell[start : start + int(generator.integers(1, 5))] = generator.uniform(0.2, 0.5)
    taken = []
    for typical in paces:
        luck = generator.normal(0, noise, rounds)
        for turn in range(1, rounds):
            luck[turn] = correlation * luck[turn - 1] + np.sqrt(1 - correlation**2) * luck[turn]
        # A spell may begin or end between two blocks of one round: then it hits one model only.
        hit = np.where(generator.random(rounds) < 0.9, spell, 0.0)
        block = typical * np.exp(pace + hit + luck)
        runs = block[:, None] * generator.lognormal(0, 0.02, (rounds, RUNS_A_ROUND))
        runs[generator.random(runs.shape) < 0.02] *= 3
        taken.append(list(runs))
    return taken


def latency_case(rounds: int, speedup: float, *, correlation: float = 0.0, name: str = "") -> Case:
    """One run: the speed-up over a baseline."""

    def draw(seed: int) -> Interval:
        generator = np.random.default_rng([rounds, seed])
        return ratio_interval(*run_of_rounds(generator, rounds, (speedup, 1.0), correlation=correlation))

    worse = 1.0 if speedup == 1 else None
    return Case(name or f"latency, {rounds} rounds, true speed-up {speedup:g}", speedup, draw, worse_below=worse)


def two_runs_case(rounds: int, slower: float, *, name: str = "") -> Case:
    """Two runs, the second on a machine of 0.8 times the pace: how many times as fast the second artifact is."""

    def draw(seed: int) -> Interval:
        generator = np.random.default_rng([rounds, seed, 1])
        old = round_ratios(*run_of_rounds(generator, rounds, (90.0, 40.0)))
        new = round_ratios(*run_of_rounds(generator, rounds, (90.0 / 0.8, 40.0 * (1 + slower) / 0.8)))
        return unpaired_ratio_interval(new, old)

    worse = 1.0 if slower == 0 else None
    return Case(name or f"two runs, {rounds} rounds, {100 * slower:.0f} % slower", 1 / (1 + slower), draw, worse_below=worse)


def cases() -> list[Case]:
    """What is printed."""
    return [
        *(accuracy_case(n, loss) for n in (99, 400, 1200) for loss in (0.0, 0.01, 0.03)),
        *(accuracy_case(n, loss, SINGLE, "accuracy, one relevant document") for n in (400, 1200) for loss in (0.0, 0.01)),
        *(accuracy_case(n, loss, HARSH, "* accuracy, 3 % lose much") for n in (99, 400) for loss in (0.0, 0.01)),
        *(latency_case(rounds, speedup) for rounds in (15, 25, 40) for speedup in (1.0, 2.25)),
        latency_case(15, 2.25, correlation=0.7, name="* latency, 15 rounds, luck of neighboring rounds correlated 0.7"),
        *(two_runs_case(rounds, slower) for rounds in (15, 25) for slower in (0.0, 0.03, 0.1)),
    ]


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    print(f"{'case':64} {'held, %':>8} {'called a loss, %':>17}   of {runs} runs")
    for case in cases():
        found = simulate(case, runs)
        lost = "" if case.worse_below is None else f"{100 * found.called_loss:.1f}"
        print(f"{case.name:64} {100 * found.held:8.1f} {lost:>17}", flush=True)


if __name__ == "__main__":
    main()
