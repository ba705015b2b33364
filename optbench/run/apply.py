"""The runner: brings a recipe's artifact and its evidence into being, and loses at most the running step when stopped."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from optbench.artifact.folder import Artifact, Kind, Weights, seal
from optbench.base.obtain import read_origin
from optbench.encoder import ENGINE_FILE
from optbench.errors import MachineError
from optbench.machine.cpu import Isa, read_machine
from optbench.machine.disk import free_disk, full_disk_errors
from optbench.recipe.schema import Recipe
from optbench.record.record import Record, write_record
from optbench.record.verdict import Verdict, judge
from optbench.report.card import render_card
from optbench.run.layer_times import obtain_layer_times
from optbench.run.make import Listener, calibration_texts, make_base, make_stage, sweep_staging, sweep_unfinished, texts_not_to_train_on
from optbench.run.measure import NumbersGauge, baseline_cells, gauge_stability, make_record, serve_scenarios, time_serving, time_stages
from optbench.run.plan import Cache, Plan, make_plan, start_index
from optbench.steps import ExportOnnx, PruneStructured
from optbench.steps.pruning.latency import LayerTimes
from optbench.tasks import JudgedTexts, Task

__all__ = ["Applied", "Options", "apply", "plan"]


class Silent:
    """A listener that says nothing."""

    def begin(self, label: str) -> None:
        """Say nothing."""

    def update(self, message: str, share: float | None) -> None:
        """Say nothing."""

    def end(self, outcome: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Options:
    """How a recipe is run.

    Attributes:
        cache: where finished work lies.
        output: the folder that gets one folder a recipe.
        weights: `random` for the true latency of the body without its weights.
        base: a source that replaces the recipe's, for a fine-tuned derivative.
        tasks: accuracy tasks besides the recipe's.
        isa: measure as a CPU with this instruction set would.
        from_step: make this step and those after it again, cached or not: a name or a number from 0.
    """

    cache: Cache
    output: Path = Path("exported")
    weights: Weights = "real"
    base: str | None = None
    tasks: tuple[Task, ...] = ()
    isa: Isa | None = None
    from_step: str | None = None


@dataclass(frozen=True)
class Applied:
    """What a run left: the record, its verdict, and the folder with the artifact."""

    record: Record
    verdict: Verdict
    folder: Path


def plan(recipe: Recipe, options: Options) -> Plan:
    """What `apply` would do, without doing it."""
    return _plan(recipe, options, calibration_texts(recipe), texts_not_to_train_on(recipe, (*recipe.tasks, *options.tasks)))


def _plan(recipe: Recipe, options: Options, calibration: Sequence[str], judged: JudgedTexts) -> Plan:
    return make_plan(
        recipe,
        options.cache,
        read_machine(),
        weights=options.weights,
        base=options.base,
        calibration=calibration,
        judged_sha256=judged.sha256,
        from_step=options.from_step,
    )


def time_layers(recipe: Recipe, options: Options, listener: Listener | None = None) -> LayerTimes:
    """Time the layers of a recipe's body as its further steps finish them; found in the cache the next time.

    Raises:
        MachineError: the cache folder cannot be made.
        OptbenchError: a probe body cannot be made or timed.
    """
    with _folder_errors():
        options.cache.root.mkdir(parents=True, exist_ok=True)
    return obtain_layer_times(recipe, options.cache, listener or Silent(), calibration_texts(recipe))


@contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"{error.filename}: cannot be made: {error.strerror}; name another folder with --output or --cache") from error


def apply(recipe: Recipe, options: Options, listener: Listener | None = None) -> Applied:
    """Run a recipe: base, steps, measurements, record, verdict, exported folder.

    Raises:
        OptbenchError: with the step named; whatever had finished is found again by the next run.
    """
    with _folder_errors():
        options.output.mkdir(parents=True, exist_ok=True)
        options.cache.root.mkdir(parents=True, exist_ok=True)
    with _locked(options.output / f".{recipe.name}.lock", recipe.name):
        return _apply_locked(recipe, options, listener or Silent())


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock of a recipe's output; the kernel lets go of it however this process ends."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MachineError(
            f"{path}: another run of {name} is at work in this output folder; wait for it, or name another --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _apply_locked(recipe: Recipe, options: Options, listener: Listener) -> Applied:
    cache = options.cache
    sweep_staging(cache)
    calibration = calibration_texts(recipe)
    judged = texts_not_to_train_on(recipe, (*recipe.tasks, *options.tasks))
    free_disk(cache.root, _plan(recipe, options, calibration, judged).missing_bytes, f"recipe {recipe.name}")
    forced = start_index(recipe, options.from_step)
    gauge = NumbersGauge(recipe, (*recipe.tasks, *options.tasks), cache, options.weights, options.isa, listener)

    base = make_base(recipe, cache, options.weights, options.base, listener)
    stages = [base]
    numbers = [gauge.measure(base)]
    for index, step in enumerate(recipe.steps):
        in_ms = isinstance(step, PruneStructured) and step.needs_layer_times
        stage = make_stage(
            step,
            f"{index} {step.step}",
            stages[-1].artifact,
            recipe,
            cache,
            listener,
            calibration=calibration,
            force=index >= forced,
            layer_times=obtain_layer_times(recipe, cache, listener, calibration) if in_ms else None,
            base=base.artifact,
            judged=judged,
        )
        stages.append(stage)
        numbers.append(gauge.measure(stage))
    # Every runtime's fp32 baseline runs on the base's plain export, whatever the recipe's own first steps are.
    export = make_stage(
        ExportOnnx(step="export_onnx"), "baseline export", base.artifact, recipe, cache, listener, calibration=calibration, force=False
    )
    sweep_unfinished(cache)
    baselines = baseline_cells(recipe, base.artifact, export.artifact)
    timed = time_stages(recipe, stages, baselines, options.isa, listener)
    serving = time_serving(stages[-1], recipe, gauge, options.isa, listener)
    stability = gauge_stability(stages[-1], recipe, gauge, cache, options.isa, listener)
    scenarios = serve_scenarios(stages[-1], recipe, gauge, options.isa, listener)
    source = options.base or ("random" if options.weights == "random" else recipe.base.source)
    warnings = [*read_origin(base.artifact.path).warnings, *gauge.warnings]
    record = make_record(recipe, source, stages, numbers, timed, baselines, serving, stability, scenarios, options.isa, warnings)
    verdict = judge(record)
    listener.begin("export")
    folder = export_artifact(stages[-1].artifact, record, verdict, options.output)
    listener.end(str(folder))
    return Applied(record, verdict, folder)


def export_artifact(artifact: Artifact, record: Record, verdict: Verdict, output: Path) -> Path:
    """Write `output/<recipe>`: the artifact, its engine settings, all records and the card, sealed, in one rename.

    Weights are hard links into the cache where that is possible, so that exporting takes no time and no space.
    Records of earlier runs are carried over.
    """
    folder = output / record.recipe.name
    with tempfile.TemporaryDirectory(prefix=f".staging-{record.recipe.name}-", dir=output, ignore_cleanup_errors=True) as scratch:
        staging = Path(scratch) / "out"
        staging.mkdir()
        with full_disk_errors(staging):
            for name in artifact.manifest.files:
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(artifact.path / name, target, artifact.kind)
            engine = record.recipe.engine_for(artifact.kind)
            (staging / ENGINE_FILE).write_text(engine.model_dump_json(indent=1) + "\n", encoding="utf-8")
            earlier = folder / "records"
            if earlier.is_dir():
                shutil.copytree(earlier, staging / "records")
            write_record(record, staging / "records")
            (staging / "README.md").write_text(render_card(record, verdict), encoding="utf-8")
        seal(staging, folder, artifact.kind, artifact.weights, artifact.manifest.layers)
    return folder


def _link_or_copy(source: Path, target: Path, kind: Kind) -> None:
    """Hard-link where that is possible and safe: onnx refuses to read a data file that has a second name."""
    if kind is not Kind.ONNX:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
