"""Does the gate detect an engine that is slowed on purpose?

    python bench/studies/slowed_engine.py exported/minilm-l6 [--processes 12] [--lengths 16,64]
    python bench/studies/slowed_engine.py exported/minilm-l6 --apart recipes/minilm-l6.yaml [--rounds 18]

The artifact is timed against itself, in alternation as in `optbench gate --retime`, with an engine that keeps computing after each run for
0, 3 or 10 % of the run's time. With --apart, each engine is timed in a separate run beside the fp32 baselines, as in `optbench apply`, and
each later record is gated against the first. Expected on a quiet machine: 10 % fails at the default limit of 5 %, 3 % is inconclusive at
a limit of 3 %, and nothing passes or fails wrongly.
"""

import argparse
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

from optbench.measure.latency import PROCESSES, Timing, answer_rounds, random_inputs, time_in_rounds
from optbench.measure.machine_state import check_machine_state
from optbench.measure.subject import Subject
from optbench.model.checkpoint import read_body
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.record.gate import GateResult, gate
from optbench.record.record import Record, newest_record
from optbench.report.table import percent_cells
from optbench.run.artifacts import ROUNDS_A_PROCESS
from optbench.run.cache import Cache
from optbench.run.listener import Silent
from optbench.run.make import Maker
from optbench.run.measurements import baseline_subjects
from optbench.run.plan import BASELINE_EXPORT, Options, Run, walk

# The name of the run, the slowdown of its engine, and the gate's limit, as fractions.
RUNS = (("the same again", 0.0, 0.05), ("3 % slower", 0.03, 0.05), ("3 % slower", 0.03, 0.03), ("10 % slower", 0.1, 0.05))


def serve_slowed(payload: dict[str, Any], progress: Callable[[str, float | None], None]) -> Generator[Any, dict[str, Any], None]:
    """Serve a model in the child process, with every run slowed by the fraction `slower`."""
    subject, slower = Subject.received(payload), float(payload["slower"])
    begin_ns = time.perf_counter_ns()
    session = subject.open()
    load_ms = (time.perf_counter_ns() - begin_ns) / 1e6

    def embed(each: Any) -> None:
        begin_ns = time.perf_counter_ns()
        session.embed(*each)
        end_ns = begin_ns + (1 + slower) * (time.perf_counter_ns() - begin_ns)
        while time.perf_counter_ns() < end_ns:
            pass

    yield from answer_rounds(embed, random_inputs(payload["lengths"], 1, read_body(subject.artifact.path).vocabulary), load_ms)


def timed(subjects: Sequence[Subject], lengths: Sequence[int], rounds: int, slower: float, processes: int) -> tuple[Timing, ...]:
    """Time one separate run; the last subject is slowed."""
    shares = [*[0.0] * (len(subjects) - 1), slower]
    models = [
        (subject.label, partial(subject.start, serve_slowed, {"lengths": lengths, "slower": share}))
        for subject, share in zip(subjects, shares, strict=True)
    ]
    found = time_in_rounds(models, lengths, rounds=rounds, processes=processes)
    return tuple(
        Timing(label=subject.label, sha256=subject.artifact.sha256, engine=subject.engine_options, **dict(times))
        for subject, times in zip(subjects, found, strict=True)
    )


def as_record(template: Record, timings: Sequence[Timing], name: str, lengths: tuple[int, ...]) -> Record:
    """A record of that run: only the latency differs, and a slowed engine counts as another artifact."""
    workload = template.recipe.workload.model_copy(update={"lengths": lengths, "judged_lengths": None})
    final = template.final.model_copy(update={"timing": timings[-1].label, "artifact_sha256": name, "accuracy": ()})
    return template.model_copy(
        update={
            "created": name,
            "recipe": template.recipe.model_copy(update={"workload": workload}),
            "points": (*template.points[:-1], final),
            "timings": tuple(timings),
            "baselines": tuple(timing.label for timing in timings[:-1]),
        }
    )


def print_checks(name: str, limit: float, result: GateResult) -> None:
    """Print one row per length, and the gate's notes."""
    for check in result.checks:
        found, interval = ("", "") if check.change is None else percent_cells(check.change)
        tokens = check.about.removeprefix("latency, ")
        print(f"{name:16} {limit:6.0%} {tokens:>12} {found:>8} {interval:>14}  {check.outcome}: {check.reason}", flush=True)
    for note in result.notes:
        print(f"{'':16} {note}")


def together(template: Record, final: Subject, lengths: tuple[int, ...], processes: int) -> None:
    """Time each slowed engine and the original in one run."""
    old = as_record(template, [*template.timings[:-1], template.timing(template.final.timing or "")], "unchanged", lengths)
    timed_with: dict[float, tuple[Timing, Timing]] = {}
    for name, slower, limit in RUNS:
        if slower not in timed_with:
            timings = timed([final, final], lengths, ROUNDS_A_PROCESS * processes, slower, processes)
            timed_with[slower] = timings[0], timings[1]
        new = as_record(old, old.timings, name, lengths)
        print_checks(name, limit, gate(old, new, latency_limit=limit, retime=lambda *_, pair=timed_with[slower]: pair))


def apart(template: Record, recipe: Recipe, cache: Cache, final: Subject, lengths: tuple[int, ...], rounds: int) -> None:
    """Time each engine in a separate run, beside the fp32 baselines."""
    run = Run(recipe.model_copy(update={"steps": (BASELINE_EXPORT,)}), Options(cache=cache, weights=template.weights))
    for _ in walk(run, Maker(run, Silent()), work=True):
        pass
    subjects = [*baseline_subjects(run), final]
    old = as_record(template, timed(subjects, lengths, rounds, 0.0, PROCESSES), "the first", lengths)
    slowed: dict[float, Record] = {}
    for name, slower, limit in RUNS:
        if slower not in slowed:
            slowed[slower] = as_record(template, timed(subjects, lengths, rounds, slower, PROCESSES), name, lengths)
        print_checks(name, limit, gate(old, slowed[slower], latency_limit=limit))


def main() -> None:
    """Time the engines, apply the gate and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="an exported artifact")
    parser.add_argument("--apart", type=Path, metavar="RECIPE", help="time each in a separate run, beside the recipe's fp32 baselines")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--processes", type=int, default=12, help="processes per engine in one run")
    parser.add_argument("--rounds", type=int, default=18, help="rounds per run, with --apart")
    parser.add_argument("--lengths", default="16,64")
    options = parser.parse_args()
    lengths = tuple(int(each) for each in options.lengths.split(","))
    template, final = newest_record(options.folder), Subject.read(options.folder.absolute(), label="final")
    for warning in check_machine_state():
        print(f"warning: {warning}")
    print(f"{'run':16} {'limit':>6} {'tokens':>12} {'change, %':>8} {'interval':>14}  outcome")
    if options.apart is None:
        together(template, final, lengths, options.processes)
    else:
        apart(template, load_recipe(options.apart), Cache(options.cache.absolute()), final, lengths, options.rounds)


if __name__ == "__main__":
    main()
