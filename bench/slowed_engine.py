"""What the gate says of an engine that is slowed on purpose.

    python bench/slowed_engine.py exported/minilm-l6 [--processes 12] [--lengths 16,64]
    python bench/slowed_engine.py exported/minilm-l6 --apart recipes/minilm-l6.yaml [--rounds 18]

The artifact is timed against itself with an engine that computes on after each run for 0, 3 and 10 % of the time that the run took,
in alternation, as `optbench gate --retime` does it. With --apart it is timed as `optbench apply` times it, beside the fp32 baselines
in runs of their own, and each later run's record is gated against the first's. Wanted, on a quiet machine: 10 % fails at the default
limit of 5 %, nothing passes or fails wrongly, and 3 % against a limit of 3 % is inconclusive.
"""

import argparse
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

from optbench.artifact.folder import Artifact, open_artifact
from optbench.machine.worker import Worker
from optbench.measure.latency import PROCESSES, Cell, Timing, answer_rounds, random_inputs, time_in_rounds
from optbench.measure.machine_state import check_environment
from optbench.model.checkpoint import read_body
from optbench.recipe.load import load_recipe
from optbench.recipe.schema import Recipe
from optbench.record.compare import percent_cells
from optbench.record.gate import GateResult, gate
from optbench.record.record import Record, newest_record
from optbench.run.apply import Silent
from optbench.run.make import make_base, make_stage
from optbench.run.measure import baseline_cells
from optbench.run.plan import Cache
from optbench.run.standalone import ROUNDS_A_PROCESS
from optbench.steps import ExportOnnx

# The name of the run, the share that its engine is slowed by, and the share that the gate allows.
RUNS = (("the same again", 0.0, 0.05), ("3 % slower", 0.03, 0.05), ("3 % slower", 0.03, 0.03), ("10 % slower", 0.1, 0.05))


def serve_slowed(payload: dict[str, Any], progress: Callable[[str, float | None], None]) -> Generator[Any, dict[str, Any], None]:
    """The child's side of a model that takes `slower` more time for every run."""
    cell, slower = Cell.model_validate(payload["cell"]), float(payload["slower"])
    begin_ns = time.perf_counter_ns()
    session = cell.engine.open(Artifact(cell.kind, cell.path, cell.sha256))
    load_ms = (time.perf_counter_ns() - begin_ns) / 1e6

    def embed(each: Any) -> None:
        begin_ns = time.perf_counter_ns()
        session.embed(*each)
        end_ns = begin_ns + (1 + slower) * (time.perf_counter_ns() - begin_ns)
        while time.perf_counter_ns() < end_ns:
            pass

    yield from answer_rounds(embed, random_inputs(payload["lengths"], 1, read_body(cell.path).vocabulary), load_ms)


def timed(cells: Sequence[Cell], lengths: Sequence[int], rounds: int, slower: float, processes: int) -> tuple[Timing, ...]:
    """One run of its own; the last cell is the one that is slowed."""

    def start(cell: Cell, share: float) -> Worker:
        payload = {"cell": cell.model_dump(mode="json"), "lengths": lengths, "slower": share}
        return Worker(serve_slowed, payload)

    shares = [*[0.0] * (len(cells) - 1), slower]
    models = [(cell.label, partial(start, cell, share)) for cell, share in zip(cells, shares, strict=True)]
    found = time_in_rounds(models, lengths, rounds=rounds, processes=processes)
    return tuple(
        Timing(label=cell.label, sha256=cell.sha256, engine=cell.engine.model_dump(mode="json"), **dict(times))
        for cell, times in zip(cells, found, strict=True)
    )


def as_record(template: Record, timings: Sequence[Timing], name: str, lengths: tuple[int, ...]) -> Record:
    """A record of that run: what is not latency is as it was, and a slowed engine is another artifact."""
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
    """A row a length, and what the gate says besides."""
    for check in result.checks:
        found, interval = ("", "") if check.change is None else percent_cells(check.change)
        tokens = check.about.removeprefix("latency, ")
        print(f"{name:16} {limit:6.0%} {tokens:>12} {found:>8} {interval:>14}  {check.outcome}: {check.reason}", flush=True)
    for note in result.notes:
        print(f"{'':16} {note}")


def together(template: Record, final: Cell, lengths: tuple[int, ...], processes: int) -> None:
    """Each slowed engine beside the true one, in one run."""
    old = as_record(template, [*template.timings[:-1], template.timing(template.final.timing or "")], "as it is", lengths)
    timed_with: dict[float, tuple[Timing, Timing]] = {}
    for name, slower, limit in RUNS:
        if slower not in timed_with:
            timings = timed([final, final], lengths, ROUNDS_A_PROCESS * processes, slower, processes)
            timed_with[slower] = timings[0], timings[1]
        new = as_record(old, old.timings, name, lengths)
        print_checks(name, limit, gate(old, new, latency_limit=limit, retime=lambda *_, pair=timed_with[slower]: pair))


def apart(template: Record, recipe: Recipe, cache: Cache, final: Cell, lengths: tuple[int, ...], rounds: int) -> None:
    """A run of its own for each, all beside the fp32 baselines."""
    base = make_base(recipe, cache, template.weights, None, Silent())
    export = make_stage(ExportOnnx(), "export", base.artifact, recipe, cache, Silent(), calibration=[], force=False).artifact
    cells = [*baseline_cells(recipe, base.artifact, export), final]
    old = as_record(template, timed(cells, lengths, rounds, 0.0, PROCESSES), "the first", lengths)
    slowed: dict[float, Record] = {}
    for name, slower, limit in RUNS:
        if slower not in slowed:
            slowed[slower] = as_record(template, timed(cells, lengths, rounds, slower, PROCESSES), name, lengths)
        print_checks(name, limit, gate(old, slowed[slower], latency_limit=limit))


def main() -> None:
    """Time, gate, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="what optbench apply made")
    parser.add_argument("--apart", type=Path, metavar="RECIPE", help="in runs of their own, beside the recipe's fp32 baselines")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--processes", type=int, default=12, help="of each, in one run")
    parser.add_argument("--rounds", type=int, default=18, help="of each run, with --apart")
    parser.add_argument("--lengths", default="16,64")
    options = parser.parse_args()
    lengths = tuple(int(each) for each in options.lengths.split(","))
    template, artifact = newest_record(options.folder), open_artifact(options.folder)
    engine = template.recipe.engine_for(artifact.kind)
    final = Cell(label="final", kind=artifact.kind, path=artifact.path.absolute(), sha256=artifact.sha256, engine=engine)
    for warning in check_environment():
        print(f"warning: {warning}")
    print(f"{'run':16} {'limit':>6} {'tokens':>12} {'change, %':>8} {'interval':>14}  outcome")
    if options.apart is None:
        together(template, final, lengths, options.processes)
    else:
        apart(template, load_recipe(options.apart), Cache(options.cache.absolute()), final, lengths, options.rounds)


if __name__ == "__main__":
    main()
