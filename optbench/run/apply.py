"""Applying a recipe: make every item, measure, judge, export. A run that is stopped loses at most the step that was running."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from optbench.artifact.folder import Artifact, link_or_copy, seal
from optbench.artifact.manifest import Kind
from optbench.engines.choice import ENGINE_FILE
from optbench.errors import MachineError
from optbench.machine.disk import free_disk, full_disk_errors
from optbench.machine.extras import require_extra
from optbench.machine.staging import STAGING, staging_folder, sweep_staging
from optbench.machine.worker import Worker
from optbench.recipe.schema import Recipe
from optbench.record.record import Record, write_record
from optbench.record.verdict import Verdict, judge
from optbench.run.cache import Cache
from optbench.run.conformance import serve_exported_ids
from optbench.run.evaluate import StageEvaluator
from optbench.run.inputs import check_inputs, describe_inputs
from optbench.run.layer_latencies import measure_layer_latencies
from optbench.run.listener import Listener, Silent
from optbench.run.make import Maker
from optbench.run.measurements import make_record, measure_served, time_stages
from optbench.run.plan import BASELINE_INDEX, Item, Options, Plan, Run, make_plan, walk
from optbench.run.schedule import expected_stages
from optbench.steps.pruning.latency import LayerTimes

__all__ = ["Applied", "CardRenderer", "apply", "export_artifact", "obtain", "plan", "time_layers"]

CardRenderer = Callable[[Record, Verdict], str]
"""Writes the model card of an exported folder, in Markdown."""


# What an exported folder is written into, beside it.
HIDDEN_STAGING = f".{STAGING}"


@dataclass(frozen=True)
class Applied:
    """What a run left: the record, its verdict, and the folder with the artifact."""

    record: Record
    verdict: Verdict
    folder: Path


def plan(recipe: Recipe, options: Options) -> Plan:
    """What `apply` would do, without doing it.

    Raises:
        OptbenchError: a text that the run needs cannot be read, as for `check_inputs`.
    """
    run = Run(recipe, options)
    check_inputs(run)
    return make_plan(run)


def obtain(recipe: Recipe, cache: Cache, listener: Listener | None = None) -> Artifact:
    """Obtain a recipe's base in the cache, and compare it with its own libraries.

    Raises:
        BaseModelError: it cannot be obtained, contradicts the recipe, or gives other ids or vectors than its libraries.
        MachineError: the cache folder cannot be made, or the disk is full.
    """
    require_extra("build", "comparing a base with its libraries")
    with _folder_errors():
        cache.root.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, Options(cache=cache))
    return Maker(run, listener or Silent())(Item("base", None, None, key=run.base_key)).artifact


def time_layers(recipe: Recipe, options: Options, listener: Listener | None = None) -> LayerTimes:
    """Time the layers of a recipe's body as its last steps finish them; the next call finds the result in the cache.

    Raises:
        MachineError: the cache folder cannot be made.
        OptbenchError: a probe body cannot be made or timed.
    """
    with _folder_errors():
        options.cache.root.mkdir(parents=True, exist_ok=True)
    return measure_layer_latencies(Run(recipe, options), listener or Silent())


def apply(recipe: Recipe, options: Options, render_card: CardRenderer, listener: Listener | None = None) -> Applied:
    """Run a recipe: base, steps, measurements, record, verdict, exported folder, whose README.md is the rendered card.

    Raises:
        OptbenchError: names the step; the next run finds in the cache what had finished.
    """
    require_extra("build", "optbench apply")
    listener = listener or Silent()
    run = Run(recipe, options, measure_layers=lambda run: measure_layer_latencies(run, listener))
    with _folder_errors():
        options.output.mkdir(parents=True, exist_ok=True)
        run.cache.root.mkdir(parents=True, exist_ok=True)
    with _locked(options.output / f".{recipe.name}.lock", recipe.name):
        run.cache.sweep_staging()
        sweep_staging(options.output, HIDDEN_STAGING)
        listener.begin("texts")
        check_inputs(run)
        listener.end(describe_inputs(run))
        planned = make_plan(run)
        free_disk(run.cache.root, planned.missing_bytes, f"recipe {recipe.name}")
        evaluator = StageEvaluator(run, listener)
        listener.expect(expected_stages(run, planned, evaluator.data))
        evaluated = [
            (stage, evaluator.evaluate(stage))
            for item, stage in walk(run, Maker(run, listener), work=True)
            if stage is not None and item.index != BASELINE_INDEX
        ]
        run.cache.sweep_unfinished()
        stages = [stage for stage, _ in evaluated]
        if tokenizer_changed(stages[0].artifact, stages[-1].artifact):
            listener.begin("tokenizer")
            with Worker(serve_exported_ids, {"folder": str(stages[-1].artifact.path)}) as worker:
                listener.end(str(worker.request({}, listener.update)))
        latency = time_stages(run, stages, listener)
        served = measure_served(run, stages[-1], evaluator, listener)
        record = make_record(run, evaluated, latency, served, evaluator.warnings)
        verdict = judge(record)
        listener.begin("export")
        folder = export_artifact(stages[-1].artifact, record, options.output, render_card(record, verdict))
        listener.end(str(folder))
    return Applied(record, verdict, folder)


@contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"{error.filename}: cannot be made: {error.strerror}; name another folder with --output or --cache") from error


def _locked(path: Path, name: str) -> AbstractContextManager[object]:
    """Hold the lock of a recipe's output; the kernel frees it however this process ends."""
    try:
        return FileLock(path).acquire(timeout=0)
    except Timeout:
        raise MachineError(
            f"{path}: another run of {name} is writing to this output folder; wait for it, or name another --output"
        ) from None


def tokenizer_changed(base: Artifact, final: Artifact) -> bool:
    """Whether a step wrote another tokenizer than the base's, whose ids have been compared already."""
    one, other = (artifact.manifest.files["tokenizer.json"] for artifact in (base, final))
    return one != other


def export_artifact(artifact: Artifact, record: Record, output: Path, card: str) -> Path:
    """Write `output/<recipe>`: the artifact, its engine settings, all records and the card, sealed, in one rename.

    Weights are hard links into the cache where that is possible, so exporting takes no time and no space. Records of earlier runs are
    carried over.
    """
    folder = output / record.recipe.name
    with staging_folder(output, HIDDEN_STAGING) as scratch:
        staging = scratch / "out"
        staging.mkdir()
        with full_disk_errors(staging):
            for name in artifact.manifest.files:
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # onnx refuses to read a data file that has a second name.
                place = shutil.copyfile if artifact.kind is Kind.ONNX else link_or_copy
                place(artifact.path / name, target)
            engine = record.recipe.engine_for(artifact.kind)
            (staging / ENGINE_FILE).write_text(engine.model_dump_json(indent=1) + "\n", encoding="utf-8")
            earlier = folder / "records"
            if earlier.is_dir():
                shutil.copytree(earlier, staging / "records")
            write_record(record, staging / "records")
            (staging / "README.md").write_text(card, encoding="utf-8")
        seal(staging, folder, artifact.kind, artifact.weights, artifact.manifest.layers)
    return folder
