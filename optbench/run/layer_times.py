"""The latency of a body's parts on this machine: bodies with random weights go through a recipe's own steps, small ones and deep ones.

They are timed once for a machine, an engine, a body and a recipe's remaining steps; the table is kept in the cache beside the artifacts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from optbench.base.obtain import Base
from optbench.machine.disk import full_disk_errors
from optbench.measure.latency import Cell, measure_latency
from optbench.model.checkpoint import Body
from optbench.recipe.schema import Recipe
from optbench.run.make import Listener, Stage, make_base, make_stage
from optbench.run.plan import Cache, finishing_steps, layer_times_path, read_layer_times
from optbench.steps.pruning.latency import LayerTimes, fit_layer_times, probe_bodies

__all__ = ["obtain_layer_times"]

# A probe's difference to the next is some tenths of a millisecond, and processes of one artifact differ by up to a fifth: three rounds in
# each of six.
ROUNDS = 18
PROCESSES = 6


@dataclass(frozen=True)
class _Part:
    """Passes a probe's progress on under one label."""

    listener: Listener
    label: str

    def begin(self, label: str) -> None:
        self.listener.update(f"{self.label}: {label}", None)

    def update(self, message: str, share: float | None) -> None:
        self.listener.update(f"{self.label}: {message}", None)

    def end(self, outcome: str) -> None:
        """Say nothing: the whole table is one stage."""


def obtain_layer_times(recipe: Recipe, cache: Cache, listener: Listener, calibration: Sequence[str]) -> LayerTimes:
    """Find the recipe's table in the cache, or measure it, in some minutes.

    Raises:
        OptbenchError: a probe body cannot be made or timed; names what failed.
    """
    listener.begin("layer times")
    known = read_layer_times(recipe, cache)
    if known is not None:
        listener.end("cached")
        return known
    bodies = probe_bodies(recipe.base.body)
    stages = [
        _make_probe(recipe, body, cache, _Part(listener, f"probe body {number + 1} of {len(bodies)}"), calibration)
        for number, body in enumerate(bodies)
    ]
    cells = [
        Cell(
            label=f"probe {number}",
            kind=stage.artifact.kind,
            path=stage.artifact.path,
            sha256=stage.artifact.sha256,
            engine=recipe.engine_for(stage.artifact.kind),
        )
        for number, stage in enumerate(stages)
    ]
    timings = measure_latency(
        cells, recipe.workload.lengths, batch=recipe.workload.batch, rounds=ROUNDS, processes=PROCESSES, progress=listener.update
    )
    times = fit_layer_times(bodies, [{n: timing.median_ms(n) for n in recipe.workload.lengths} for timing in timings])
    path = layer_times_path(recipe, cache)
    with full_disk_errors(cache.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(times.model_dump_json(indent=1), encoding="utf-8")
        draft.replace(path)
    sizes = recipe.base.body.sizes
    listener.end(", ".join(f"{times.body_ms(sizes, n):.3g} ms at {n} tokens" for n in times.lengths))
    return times


def _make_probe(recipe: Recipe, body: Body, cache: Cache, listener: Listener, calibration: Sequence[str]) -> Stage:
    """A random base of this body, finished as the recipe finishes its own."""
    tokens = min(recipe.base.max_tokens, max(recipe.workload.lengths))
    base = Base.model_validate({**recipe.base.model_dump(), "body": body.model_dump(), "max_tokens": tokens})
    probe = recipe.model_copy(update={"base": base})
    stage = make_base(probe, cache, "random", None, listener)
    for step in finishing_steps(recipe):
        stage = make_stage(step, step.step, stage.artifact, probe, cache, listener, calibration=calibration, force=False)
    return stage
