"""The latency of a body's layers on this machine: measured on probe bodies that the recipe's own last steps finish."""

from optbench.base.entry import Base
from optbench.machine.disk import full_disk_errors
from optbench.measure.latency import measure_latency
from optbench.measure.subject import Subject
from optbench.model.body import Body
from optbench.run.listener import Listener, Nested
from optbench.run.make import make_stages
from optbench.run.plan import Options, Run, Stage, finishing_steps
from optbench.steps.pruning.latency import LayerTimes, fit_layer_times, probe_bodies

__all__ = ["measure_layer_latencies"]

# Two probe bodies differ by some tenths of a millisecond, and processes of one artifact by up to a fifth: three rounds in each of six.
ROUNDS = 18
PROCESSES = 6


def measure_layer_latencies(run: Run, listener: Listener) -> LayerTimes:
    """Find the latencies in the cache, or measure them in a few minutes and keep them there.

    Raises:
        OptbenchError: a probe body cannot be made or timed; names what failed.
    """
    listener.begin("layer times")
    cached = run.find_layer_times()
    if cached is not None:
        listener.end("cached")
        return cached
    recipe, lengths = run.recipe, run.recipe.workload.lengths
    bodies = probe_bodies(recipe.base.body)
    stages = [
        _make_probe(run, body, Nested(listener, f"probe body {number} of {len(bodies)}")) for number, body in enumerate(bodies, start=1)
    ]
    subjects = [
        Subject(stage.artifact, recipe.engine_for(stage.artifact.kind), run.options.isa, f"probe {number}")
        for number, stage in enumerate(stages)
    ]
    timings = measure_latency(subjects, lengths, batch=recipe.workload.batch, rounds=ROUNDS, processes=PROCESSES, progress=listener.update)
    times = fit_layer_times(bodies, [{length: timing.median_ms(length) for length in lengths} for timing in timings])
    path = run.layer_times_path
    with full_disk_errors(run.cache.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(times.model_dump_json(indent=1), encoding="utf-8")
        draft.replace(path)
    sizes = recipe.base.body.sizes
    listener.end(", ".join(f"{times.body_ms(sizes, length):.3g} ms at {length} tokens" for length in times.lengths))
    return times


def _make_probe(run: Run, body: Body, listener: Listener) -> Stage:
    """A random base of this body, finished as the recipe finishes its own."""
    recipe = run.recipe
    tokens = min(recipe.base.max_tokens, max(recipe.workload.lengths))
    base = Base.model_validate({**recipe.base.model_dump(), "body": body.model_dump(), "max_tokens": tokens})
    probe = recipe.model_copy(update={"base": base, "steps": tuple(finishing_steps(recipe))})
    return make_stages(Run(probe, Options(cache=run.cache, weights="random", isa=run.options.isa)), listener)[-1]
