"""The plan: the items of a run in order, each with its source, its inputs and its cache key.

`walk` is the one loop over them. `make_plan` walks with a function that looks into the cache; `apply` walks with one that makes what is
missing.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optbench.artifact.folder import Artifact, hash_file, open_artifact, read_manifest_sha256
from optbench.artifact.manifest import Kind, Weights
from optbench.base.obtain import base_key, check_source
from optbench.errors import RecipeError
from optbench.machine.cpu import Isa, Machine, read_machine
from optbench.machine.frozen import Frozen
from optbench.machine.versions import library_versions
from optbench.recipe.schema import Recipe
from optbench.run.cache import Cache
from optbench.run.calibration import DrawnTexts, draw_calibration
from optbench.run.inputs import Resolution, calibrates, resolve
from optbench.steps import Step
from optbench.steps.base import Input, StepReport
from optbench.steps.export_onnx import ExportOnnx
from optbench.steps.pruning.latency import FIT_VERSION, LayerTimes, probe_bodies
from optbench.tasks import JudgedTexts, PairData, RetrievalData, Task, load_tasks
from optbench.tasks.judged import collect_judged

__all__ = ["Item", "Options", "Plan", "PlannedStep", "Run", "Stage", "StepOutcome", "finishing_steps", "make_plan", "start_index", "walk"]

# What each runtime's fp32 baseline runs on, whatever the recipe's own first steps are.
BASELINE_EXPORT = ExportOnnx(step="export_onnx")
BASELINE_INDEX = -1


@dataclass(frozen=True)
class Options:
    """How a recipe is run.

    Attributes:
        output: the folder that gets one folder a recipe.
        weights: `random` for the true latency of the body without its weights.
        base: a source that replaces the recipe's, for a fine-tuned derivative.
        tasks: accuracy tasks besides the recipe's.
        isa: make and measure as a CPU with this instruction set, and nothing beyond it, would.
        from_step: make this step and those after it again, cached or not: a name or a number from 0.
    """

    cache: Cache
    output: Path = Path("exported")
    weights: Weights = "real"
    base: str | None = None
    tasks: tuple[Task, ...] = ()
    isa: Isa | None = None
    from_step: str | None = None


class StepOutcome(Frozen):
    """What the cache keeps of a step beside its artifact."""

    report: StepReport = StepReport()
    seconds: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True)
class Item:
    """One artifact that a run makes or finds.

    Attributes:
        label: `base`, `baseline export`, or the step's number and name.
        step: None for the base.
        index: the step's place in the recipe from 0; `BASELINE_INDEX` for the baseline export, None for the base.
        source: what the step takes; None for the base, and while the item before has not run.
        resolutions: the step's inputs by class.
        key: the cache key; None while the source or an input does not exist yet.
        forced: make it even if the cache has it.
    """

    label: str
    step: Step | None
    index: int | None
    source: Artifact | None = None
    resolutions: Mapping[type[Input[Any]], Resolution] = field(default_factory=dict)
    key: str | None = None
    forced: bool = False


@dataclass(frozen=True)
class Stage:
    """An item with its artifact, and how that was made.

    Attributes:
        outcome: from when the step ran.
        cached: whether that was in an earlier run.
    """

    item: Item
    artifact: Artifact
    outcome: StepOutcome = field(default_factory=StepOutcome)
    cached: bool = True

    @property
    def label(self) -> str:
        """The item's."""
        return self.item.label

    @property
    def step(self) -> Step | None:
        """The item's; None for the base."""
        return self.item.step


class Run:
    """A recipe with its options, and what its items share: each is computed when first needed, and once.

    Attributes:
        base: the base's artifact, once `walk` has reached it.
        export: its plain ONNX export, once `walk` has reached that.
        measure_layers: measures the latency of the body's layers, for a step that needs it and finds no earlier measurement.
    """

    def __init__(self, recipe: Recipe, options: Options, measure_layers: Callable[["Run"], LayerTimes] | None = None) -> None:
        """Refuse an instruction set that the result could not be timed with, before anything runs.

        Raises:
            EngineError: this CPU lacks `options.isa`, or the engine of the last step cannot be limited to it.
        """
        if options.isa is not None:
            recipe.engine_for(recipe.steps[-1].gives).isa_variables(options.isa)  # raises
        self.recipe, self.options, self.cache = recipe, options, options.cache
        self.base: Artifact | None = None
        self.export: Artifact | None = None
        self._measure_layers = measure_layers
        self._hashes: dict[Path, str] = {}

    def measure_layers(self, run: "Run") -> LayerTimes:
        """Measure the latency of the body's layers.

        Raises:
            RecipeError: this run only plans.
        """
        if self._measure_layers is None:
            raise RecipeError(f"recipe {self.recipe.name}: layer latencies are measured by apply, not by plan")
        return self._measure_layers(run)

    @cached_property
    def machine(self) -> Machine:
        """This machine, limited to the instruction set of the options: what steps, keys and warnings see."""
        machine = read_machine()
        return machine if self.options.isa is None else machine.limited_to(self.options.isa)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The recipe's tasks, then those of the options."""
        return (*self.recipe.tasks, *self.options.tasks)

    @cached_property
    def base_key(self) -> str:
        """The base's cache key."""
        return base_key(self.recipe.base, self.options.weights, self.options.base)

    @cached_property
    def data(self) -> Sequence[RetrievalData | PairData]:
        """All tasks, read."""
        return load_tasks(self.tasks)

    @cached_property
    def calibration(self) -> DrawnTexts:
        """The recipe's calibration texts, and where they come from."""
        return draw_calibration(self.recipe, self.evaluation_texts)

    @property
    def calibration_texts(self) -> tuple[str, ...]:
        """The calibration texts, prompts in front."""
        return self.calibration.texts

    @cached_property
    def evaluation_texts(self) -> JudgedTexts:
        """The queries and judged documents of all tasks."""
        return collect_judged(self.data)

    def hash_file(self, path: Path) -> str:
        """The sha256 of a file, read once a run."""
        if path not in self._hashes:
            self._hashes[path] = hash_file(path)
        return self._hashes[path]

    @property
    def layer_times_path(self) -> Path:
        """Where the latency of the body's layers is kept; the name holds everything that may change it."""
        steps = finishing_steps(self.recipe)
        kind = steps[-1].gives if steps else Kind.CHECKPOINT
        parts: list[object] = [
            FIT_VERSION,
            [body.model_dump(mode="json") for body in probe_bodies(self.recipe.base.body)],
            [[step.model_dump(mode="json"), step.version, library_versions(step.libraries)] for step in steps],
            self.recipe.engine_for(kind).model_dump(mode="json"),
            [self.recipe.workload.lengths, self.recipe.workload.batch],
            self.machine.fingerprint,
        ]
        return self.cache.layer_times / f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}.json"

    def find_layer_times(self) -> LayerTimes | None:
        """The latencies that were measured for the recipe on this machine; None if they have not been."""
        try:
            return LayerTimes.model_validate_json(self.layer_times_path.read_bytes())
        except (OSError, ValueError):
            return None

    def step_key(self, step: Step, source_sha256: str, resolutions: Mapping[type[Input[Any]], Resolution]) -> str:
        """The cache key of a step on a source: it changes with anything that may change the step's output."""
        parts: list[object] = [
            source_sha256,
            step.model_dump(mode="json"),
            step.version,
            library_versions(step.libraries),
            self.machine.isa,
            {kind.__name__: resolution.identity for kind, resolution in resolutions.items()},
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def walk(run: Run, produce: Callable[[Item], Stage | None], *, work: bool, baseline: bool = True) -> Iterator[tuple[Item, Stage | None]]:
    """Go through the items of a run in order.

    An item is built when its turn comes, because its key needs the hash of its source. `produce` gives an item's artifact, or None where it
    does not exist and is not to be made. `work` says whether inputs of steps may be measured.

    Yields:
        Each item with what `produce` gave: the base; with `baseline`, its plain export unless the recipe begins with it; and the steps.
    """
    recipe = run.recipe
    forced = start_index(recipe, run.options.from_step)
    item = Item("base", None, None, key=run.base_key)
    base = produce(item)
    run.base = None if base is None else base.artifact
    yield item, base
    steps = list(enumerate(recipe.steps))
    if baseline and recipe.steps[0] != BASELINE_EXPORT:
        steps.insert(0, (BASELINE_INDEX, BASELINE_EXPORT))
    stage = base
    for index, step in steps:
        source = base if index <= 0 else stage
        label = "baseline export" if index == BASELINE_INDEX else f"{index} {step.step}"
        item = Item(label, step, index, forced=index >= forced)
        if source is not None:
            resolutions = resolve(step, run, work=work)
            if resolutions is not None:
                key = run.step_key(step, source.artifact.sha256, resolutions)
                item = Item(label, step, index, source.artifact, resolutions, key, item.forced)
        stage = produce(item)
        if stage is not None and index <= 0 and step == BASELINE_EXPORT:
            run.export = stage.artifact
        yield item, stage


class PlannedStep(Frozen):
    """A step in its place.

    Attributes:
        index: its place in the recipe, from 0; -1 for the export that the fp32 baselines run on.
        key: its cache key; None while the step before it has not run, whose result is part of it.
        state: `cached` or `run`.
        estimate_bytes: the expected size of its output on disk.
        predicted_ms: latency of the pruned body as the recipe finishes it, by length; None where layers have not been timed here.
        whole_ms: the same of the whole body.
    """

    index: int
    step: str
    takes: Kind
    gives: Kind
    key: str | None
    state: str
    estimate_bytes: int
    predicted_ms: dict[int, float] | None = None
    whole_ms: dict[int, float] | None = None


class Plan(Frozen):
    """What `optbench apply` would do.

    Attributes:
        tasks: each task's size and what of it is ranked, in words.
        calibration: where the calibration texts come from, in words; empty if no step needs any.
    """

    recipe: str
    recipe_sha256: str
    weights: str
    base: str
    base_key: str
    base_state: str
    steps: tuple[PlannedStep, ...]
    missing_bytes: int
    tasks: tuple[str, ...] = ()
    calibration: str = ""


def finishing_steps(recipe: Recipe) -> list[Step]:
    """The steps that turn a checkpoint into what is served: those after the last that gives a checkpoint."""
    last = max((index for index, step in enumerate(recipe.steps) if step.gives is Kind.CHECKPOINT), default=-1)
    return list(recipe.steps[last + 1 :])


def start_index(recipe: Recipe, name: str | None) -> int:
    """The index that `--from` names, as a step's name or its number from 0; the number of steps where it is None.

    Raises:
        RecipeError: no such step; lists the recipe's steps.
    """
    if name is None:
        return len(recipe.steps)
    names = [step.step for step in recipe.steps]
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    if name not in names:
        raise RecipeError(f"--from {name}: recipe {recipe.name} has no such step; it has {', '.join(names)}")
    return names.index(name)


def source_name(run: Run) -> str:
    """Where the base comes from, as the plan and the record state it."""
    return run.options.base or ("random" if run.options.weights == "random" else run.recipe.base.source)


def make_plan(run: Run) -> Plan:
    """Plan a run: nothing is made, verified or written.

    Raises:
        BaseModelError: the base's own files contradict the recipe, or ask for what optbench does not export.
    """
    recipe, cache = run.recipe, run.cache
    check_source(recipe.base, run.options.weights, run.options.base)
    # Four bytes a parameter; every later form is at most that large.
    size = 4 * recipe.base.body.parameters
    missing, base_state = 0, "cached"
    times = run.find_layer_times()
    planned = []

    def look(item: Item) -> Stage | None:
        if item.key is None or item.forced:
            return None
        folder = cache.artifact(item.key)
        there = read_manifest_sha256(folder) is not None if item.step is None else cache.has(item.key)
        return Stage(item, open_artifact(folder, verify=False)) if there else None

    for item, stage in walk(run, look, work=False):
        missing += 0 if stage else size
        if item.step is None or item.index is None:
            base_state = "cached" if stage else "obtain"
            continue
        sizes = item.step.predict_layers(recipe.base.body, times) if times else None
        planned.append(
            PlannedStep(
                index=item.index,
                step=item.step.step,
                takes=Kind.CHECKPOINT if item.index <= 0 else recipe.steps[item.index - 1].gives,
                gives=item.step.gives,
                key=item.key,
                state="cached" if stage else "run",
                estimate_bytes=size,
                predicted_ms=_body_ms(times, sizes),
                whole_ms=_body_ms(times, recipe.base.body.sizes if sizes else None),
            )
        )
    return Plan(
        recipe=recipe.name,
        recipe_sha256=recipe.sha256,
        weights=run.options.weights,
        base=source_name(run),
        base_key=run.base_key,
        base_state=base_state,
        steps=tuple(planned),
        missing_bytes=missing,
        tasks=tuple(data.describe() for data in run.data),
        calibration=run.calibration.note if calibrates(run.recipe) else "",
    )


def _body_ms(times: LayerTimes | None, sizes: Sequence[tuple[int, int]] | None) -> dict[int, float] | None:
    return {length: times.body_ms(sizes, length) for length in times.lengths} if times and sizes else None
