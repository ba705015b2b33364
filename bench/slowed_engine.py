"""What the gate says of an engine that is slowed on purpose.

    python bench/slowed_engine.py recipes/minilm-l6.yaml exported/minilm-l6 [--rounds 18] [--lengths 16,64]

The artifact is timed beside the fp32 baselines as `optbench apply` times it, in runs of their own: as it is, as it is once more,
and with an engine that computes on after each run for 3 % and 10 % of the time that the run took. Each later run is gated
against the first. Wanted, on a quiet machine: 10 % fails at the default limit of 5 %, nothing passes or fails wrongly, and 3 %
against a limit of 3 % is inconclusive.
"""

import argparse
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

from optbench.artifact import Artifact, open_artifact
from optbench.checkpoint import read_body
from optbench.comparison import percent_cells
from optbench.evidence import baseline_cells
from optbench.gate import gate
from optbench.measure.environment import check_environment
from optbench.measure.latency import PROCESSES, Cell, Timing, answer_rounds, random_inputs, time_in_rounds
from optbench.plan import Cache
from optbench.recipe_file import load_recipe
from optbench.record import Record, newest_record
from optbench.runner import Silent
from optbench.stages import make_base, make_stage
from optbench.steps import ExportOnnx
from optbench.worker import Worker

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


def timed(cells: Sequence[Cell], lengths: Sequence[int], rounds: int, slower: float) -> tuple[Timing, ...]:
    """One run of its own; the last cell is the one that is slowed."""

    def start(cell: Cell) -> Worker:
        payload = {"cell": cell.model_dump(mode="json"), "lengths": lengths, "slower": slower if cell is cells[-1] else 0.0}
        return Worker("bench.slowed_engine:serve_slowed", payload)

    found = time_in_rounds([(cell.label, partial(start, cell)) for cell in cells], lengths, rounds=rounds, processes=PROCESSES)
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


def main() -> None:
    """Time, gate, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path, help="what optbench apply made of it")
    parser.add_argument("--cache", type=Path, default=Path(platformdirs.user_cache_dir("optbench")))
    parser.add_argument("--rounds", type=int, default=18)
    parser.add_argument("--lengths", default="16,64")
    options = parser.parse_args()
    lengths = tuple(int(each) for each in options.lengths.split(","))
    recipe, cache, template = load_recipe(options.recipe), Cache(options.cache.absolute()), newest_record(options.folder)
    base = make_base(recipe, cache, template.weights, None, Silent())
    export = make_stage(ExportOnnx(), "export", base.artifact, recipe, cache, Silent(), calibration=[], force=False).artifact
    final = open_artifact(options.folder)
    last = Cell(
        label="final", kind=final.kind, path=final.path.absolute(), sha256=final.sha256, engine=template.recipe.engine_for(final.kind)
    )
    cells = [*baseline_cells(recipe, base.artifact, export), last]
    for warning in check_environment():
        print(f"warning: {warning}")
    begin = time.monotonic()
    old = as_record(template, timed(cells, lengths, options.rounds, 0.0), "the first", lengths)
    print(f"{recipe.name}: {options.rounds} rounds in {PROCESSES} processes, {time.monotonic() - begin:.0f} s a run; change of time in %")
    print(f"{'run':16} {'limit':>6} {'tokens':>12} {'change':>8} {'interval':>14}  outcome")
    slowed: dict[float, Record] = {}
    for name, slower, limit in RUNS:
        if slower not in slowed:
            slowed[slower] = as_record(template, timed(cells, lengths, options.rounds, slower), name, lengths)
        result = gate(old, slowed[slower], latency_limit=limit)
        for check in result.checks:
            found, interval = ("", "") if check.change is None else percent_cells(check.change)
            tokens = check.about.removeprefix("latency, ")
            print(f"{name:16} {limit:6.0%} {tokens:>12} {found:>8} {interval:>14}  {check.outcome}: {check.reason}", flush=True)
        for note in result.notes:
            print(f"{'':16} {note}")


if __name__ == "__main__":
    main()
