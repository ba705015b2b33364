"""Do the intervals cover what they claim? Coverage, false alarms and verdicts, on populations whose truth is known.

    python bench/studies/simulate_intervals.py [--runs 1000] [--only accuracy]

Expected: a 95 % interval contains the truth in 92-98 % of runs, a change of zero is called a loss in at most 5 %, and the number of
queries or processes that an inconclusive verdict asks for settles it in about 80 %. One row per case. Cases marked * violate an
assumption on purpose. The last columns are verdicts on the intervals, with a limit of 1 % loss and a target of 2 times.

Accuracy: a large population of queries whose true relative change is known exactly; each run draws n queries from it. Some
populations are synthetic, with values like nDCG@10; others are all-MiniLM-L6-v2's values in `query_values.json`, before and after a
quantization. These are drawn unchanged, with before and after swapped at random (so the true change is zero), and with losing
queries three times as frequent.

Latency: rounds that time two models one after the other on a shared machine. Its speed drifts by a random walk, another process runs
for some rounds at a time, runs within a round share noise, single runs stall, and rounds within a process share an offset: normal
with standard deviation "between", or 40 % slower for one process in five.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optbench.measure.sample_size import samples_needed
from optbench.measure.statistics import (
    Interval,
    paired_relative_change,
    process_rounds,
    ratio_interval,
    ratio_observations,
    unpaired_ratio_interval,
)

Values = NDArray[np.float64]
Draw = Callable[[int], Interval]

QUERY_VALUES = Path(__file__).parent / "query_values.json"
POPULATION = 100_000
RESAMPLES = 1000
RUNS_A_ROUND = 6
LOSS_LIMIT, SPEEDUP_LIMIT = -0.01, 2.0
SLOW_PROCESS, SLOW_BY = 0.2, 0.4
# Standard deviation of the logarithm of a block of runs.
BLOCK_NOISE = 0.015


@dataclass(frozen=True)
class Case:
    """A true value, and how to draw an interval for it.

    Attributes:
        name: as printed; begins with * if an assumption is violated on purpose.
        truth: the true value.
        draw: the interval of one run, by its seed.
        limit: the smallest value that passes.
        worse_below: values below it are a loss: 0 for a change, 1 for a speed-up; None if losses are not counted.
    """

    name: str
    truth: float
    draw: Draw
    limit: float
    worse_below: float | None = None


@dataclass(frozen=True)
class Found:
    """Shares of runs, the mean half width as a fraction, and the verdicts on the intervals."""

    held: float
    called_loss: float
    half_width: float
    outcomes: dict[str, float]


def outcome(interval: Interval, limit: float) -> str:
    """A verdict's rule."""
    if not interval.bounded or interval.low < limit <= interval.high:
        return "inconclusive"
    return "pass" if interval.low >= limit else "fail"


def simulate(case: Case, runs: int) -> Found:
    """Draw the case's interval `runs` times."""
    drawn = [case.draw(seed) for seed in range(runs)]
    outcomes = Counter(outcome(each, case.limit) for each in drawn)
    return Found(
        held=sum(each.low <= case.truth <= each.high for each in drawn) / runs,
        called_loss=sum(case.worse_below is not None and each.high < case.worse_below for each in drawn) / runs,
        half_width=sum(each.half_width for each in drawn) / runs,
        outcomes={name: outcomes[name] / runs for name in ("pass", "fail", "inconclusive")},
    )


@dataclass(frozen=True)
class Changes:
    """How queries change, as fractions of all queries.

    Attributes:
        moved: change a little, up or down.
        scale: of the Laplace distribution of small changes.
        large: lose 20-60 % of their value.
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

    # The small changes offset the few large losses: their shift is found by bisection.
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if after(middle).mean() < (1 - loss) * before.mean() else (low, middle)
    return before, after(low)


def real_populations() -> Iterator[tuple[str, Values, Values]]:
    """Each task and quantization of `query_values.json`: unchanged, with a change of zero, and with more loss."""
    for task, values in json.loads(QUERY_VALUES.read_text(encoding="utf-8"))["tasks"].items():
        before = np.array(values["fp32"])
        for name in (each for each in values if each != "fp32"):
            after = np.array(values[name])
            yield f"{task}, {name}", before, after
            yield f"{task}, {name}, either order", np.concatenate([before, after]), np.concatenate([after, before])
            fell = after < before
            yield f"{task}, {name}, more fall", np.concatenate([before, *2 * [before[fell]]]), np.concatenate([after, *2 * [after[fell]]])


def draw_change(before: Values, after: Values, n: int, seed: int, resamples: int = RESAMPLES) -> Interval:
    """The interval from n queries of a population."""
    chosen = np.random.default_rng([n, seed]).integers(len(before), size=n)
    pair = ({str(row): float(value) for row, value in enumerate(values[chosen])} for values in (before, after))
    return paired_relative_change(*pair, seed=seed, resamples=resamples)


def change_case(name: str, before: Values, after: Values, n: int) -> Case:
    """Draw n queries from a population of real values."""
    truth = float(after.sum() / before.sum() - 1)
    no_change = abs(truth) < 1e-9
    return Case(name, truth, partial(draw_change, before, after, n), LOSS_LIMIT, worse_below=0.0 if no_change else None)


def accuracy_case(n: int, loss: float, changes: Changes = GRADED, name: str = "accuracy") -> Case:
    """Draw n queries from a synthetic population."""
    return change_case(f"{name}, {n} queries, true loss {100 * loss:.0f} %", *population(loss, changes), n)


def run_of_rounds(
    generator: np.random.Generator,
    rounds: int,
    paces: tuple[float, ...],
    *,
    processes: int = 1,
    between: float = 0.0,
    slow: bool = False,
) -> list[list[Values]]:
    """Latencies of several models by round, as one interleaved run takes them.

    Args:
        generator: of the noise.
        rounds: how many.
        paces: each model's true latency.
        processes: that each model is opened in.
        between: standard deviation of the offset of a process.
        slow: whether one process in five is slow throughout.
    """
    pace = np.cumsum(generator.normal(0, 0.02, rounds))
    spell = np.zeros(rounds)
    for start in np.flatnonzero(generator.random(rounds) < 0.08):
        spell[start : start + int(generator.integers(1, 5))] = generator.uniform(0.2, 0.5)
    shares = [len(each) for each in process_rounds(rounds, processes)]
    taken = []
    for typical in paces:
        luck = generator.normal(0, between, processes) + np.log1p(SLOW_BY) * (slow and generator.random(processes) < SLOW_PROCESS)
        # Such a spell may begin or end between two blocks of a round and then affects one model only.
        hit = np.where(generator.random(rounds) < 0.9, spell, 0.0)
        block = typical * np.exp(pace + hit + np.repeat(luck, shares) + generator.normal(0, BLOCK_NOISE, rounds))
        runs = block[:, None] * generator.lognormal(0, 0.02, (rounds, RUNS_A_ROUND))
        runs[generator.random(runs.shape) < 0.02] *= 3
        taken.append(list(runs))
    return taken


def latency_case(
    rounds: int,
    processes: int,
    speedup: float,
    *,
    between: float = 0.0,
    slow: bool = False,
    judged: Callable[[list[Values], list[Values]], Interval] | None = None,
) -> Case:
    """One run: the speed-up over a baseline, with the interval of `judged`, or of optbench."""

    def draw(seed: int) -> Interval:
        generator = np.random.default_rng([rounds, processes, seed])
        taken = run_of_rounds(generator, rounds, (speedup, 1.0), processes=processes, between=between, slow=slow)
        return judged(*taken) if judged else ratio_interval(*taken, processes=processes)

    luck = "1 in 5 is slow" if slow else f"between {100 * between:g} %"
    title = f"latency, {rounds} rounds in {processes} processes, {luck}, true {speedup:g}x"
    return Case(title, speedup, draw, SPEEDUP_LIMIT, worse_below=1.0 if speedup == 1 else None)


def bootstrap_of_processes(baseline: list[Values], candidate: list[Values], *, processes: int) -> Interval:
    """An alternative to `ratio_interval`: the percentile bootstrap of the mean over processes."""
    logs = np.log(ratio_observations(baseline, candidate, processes=processes))
    drawn = np.random.default_rng(0).choice(logs, (1000, len(logs))).mean(axis=1)
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return Interval(point=float(np.exp(logs.mean())), low=float(low), high=float(high), confidence=0.95, n=processes)


def two_runs_case(slower: float, *, rounds: int = 15, processes: int = 6, between: float = 0.02) -> Case:
    """The speed-up of the second artifact over the first, from two runs, the second at 0.8 times the machine's speed."""

    def draw(seed: int) -> Interval:
        generator = np.random.default_rng([rounds, seed, 1])
        observed = [
            ratio_observations(*run_of_rounds(generator, rounds, paces, processes=processes, between=between), processes=processes)
            for paces in ((90.0, 40.0), (90.0 / 0.8, 40.0 * (1 + slower) / 0.8))
        ]
        return unpaired_ratio_interval(observed[1], observed[0], of="processes" if processes > 1 else "rounds")

    title = f"two runs, {rounds} rounds in {processes} processes, between {100 * between:g} %, {100 * slower:.0f} % slower"
    # The gate's default limit.
    return Case(title, 1 / (1 + slower), draw, 1 / 1.05, worse_below=1.0 if slower == 0 else None)


def settled_queries(runs: int, n: int = 150) -> tuple[float, float, float]:
    """True losses from 0 to 2 %, a limit of 1 %: of those inconclusive with n queries, how many do the extra queries settle?

    Returns:
        the share that was inconclusive, the share of these that was settled, and the share of the settled that was wrong.
    """
    found: Counter[str] = Counter()
    truths = [population(loss, GRADED) for loss in np.linspace(0, 0.02, 9)]
    for seed in range(runs):
        before, after = truths[seed % len(truths)]
        first = draw_change(before, after, n, seed, resamples=1000)
        if outcome(first, LOSS_LIMIT) == "inconclusive":
            # `draw_change` seeds by n, so the first queries are the same.
            more = samples_needed(first, LOSS_LIMIT)
            both = np.concatenate(
                [np.random.default_rng([n, seed]).integers(POPULATION, size=n), np.random.default_rng(seed).integers(POPULATION, size=more)]
            )
            pair = ({str(row): float(value) for row, value in enumerate(values[both])} for values in (before, after))
            then = outcome(paired_relative_change(*pair, seed=seed, resamples=500), LOSS_LIMIT)
            right = "pass" if after.sum() / before.sum() - 1 >= LOSS_LIMIT else "fail"
            found[then if then == "inconclusive" else "right" if then == right else "wrong"] += 1
    return _settled(found, runs)


def settled_processes(runs: int, processes: int = 6) -> tuple[float, float, float]:
    """True speed-ups around the target; otherwise like `settled_queries`. The second run is independent."""
    found: Counter[str] = Counter()
    # Wider than an inconclusive interval, so that all true values within it are equally likely.
    spread = np.linspace(-0.12, 0.12, 48)
    for seed in range(runs):
        truth = SPEEDUP_LIMIT * float(np.exp(spread[seed % len(spread)]))
        generator = np.random.default_rng(seed)

        def measure(count: int, generator: np.random.Generator = generator, truth: float = truth) -> Interval:
            taken = run_of_rounds(generator, 3 * count, (truth, 1.0), processes=count, between=0.02)
            return ratio_interval(*taken, processes=count)

        first = measure(processes)
        if outcome(first, SPEEDUP_LIMIT) == "inconclusive":
            then = outcome(measure(processes + samples_needed(first, SPEEDUP_LIMIT)), SPEEDUP_LIMIT)
            right = "pass" if truth >= SPEEDUP_LIMIT else "fail"
            found[then if then == "inconclusive" else "right" if then == right else "wrong"] += 1
    return _settled(found, runs)


def _settled(found: Counter[str], runs: int) -> tuple[float, float, float]:
    settled = found["right"] + found["wrong"]
    return found.total() / runs, settled / max(found.total(), 1), found["wrong"] / max(settled, 1)


def cases() -> Iterator[Case]:
    """Every case to print."""
    for n in (99, 400, 1200):
        yield from (accuracy_case(n, loss) for loss in (0.0, 0.01, 0.03))
        yield from (accuracy_case(n, loss, SINGLE, "accuracy, one relevant document") for loss in (0.0, 0.01))
        yield from (accuracy_case(n, loss, HARSH, "accuracy, 3 % lose much") for loss in (0.0, 0.01))
        # About as many queries as the task has, and four times as many.
        small = "XQuAD" if n == 1200 else "Chorus" if n == 99 else ""
        chosen = [each for each in real_populations() if each[0].startswith(small)]
        yield from (change_case(f"accuracy, {n} of {name}", before, after, n) for name, before, after in chosen)
    for between in (0.0, 0.01, 0.05):
        yield from (latency_case(rounds, 6, speedup, between=between) for rounds in (15, 25) for speedup in (1.0, 2.25))
    yield from (latency_case(15, processes, 2.25, between=0.02) for processes in (3, 5, 10))
    yield latency_case(15, 6, 2.25, slow=True)
    by_rounds = partial(ratio_interval, processes=1)
    for processes in (3, 6):
        case = latency_case(15, processes, 2.25, between=0.02, judged=by_rounds)
        yield replace(case, name=f"* as if rounds were independent, {case.name}")
        resampled = partial(bootstrap_of_processes, processes=processes)
        case = latency_case(15, processes, 2.25, between=0.02, judged=resampled)
        yield replace(case, name=f"* bootstrap of processes, {case.name}")
    yield from (two_runs_case(slower, between=between) for between in (0.0, 0.02) for slower in (0.0, 0.03, 0.1))
    yield from (two_runs_case(slower, processes=1, between=0.0) for slower in (0.0, 0.1))


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args()
    columns = ("held, %", "loss, %", "+-, %", "pass", "fail", "open")
    print(f"{'case':92}" + "".join(f"{column:>9}" for column in columns) + f"   {options.runs} runs")
    for case in (each for each in cases() if options.only in each.name):
        found = simulate(case, options.runs)
        lost = "" if case.worse_below is None else f"{100 * found.called_loss:.1f}"
        shares = "".join(f"{100 * share:9.1f}" for share in found.outcomes.values())
        print(f"{case.name:92}{100 * found.held:9.1f}{lost:>9}{100 * found.half_width:9.2f}{shares}", flush=True)
    for name, settle in (("further queries", settled_queries), ("further processes", settled_processes)):
        if options.only in name:
            left_open, settled, wrong = settle(options.runs)
            print(
                f"{name}: {100 * left_open:.0f} % inconclusive, {100 * settled:.0f} % of them settled, {100 * wrong:.1f} % of those wrong"
            )


if __name__ == "__main__":
    main()
