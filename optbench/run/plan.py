"""The plan: which steps run on what, under which cache keys, and what is there already. Pure: nothing is run or opened."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optbench.artifact.folder import Kind, hash_file, read_manifest_sha256
from optbench.base.obtain import base_key
from optbench.errors import RecipeError
from optbench.machine.cpu import Machine, read_machine
from optbench.machine.frozen import Frozen
from optbench.recipe.schema import Recipe
from optbench.steps import ExportOnnx, PruneStructured, Step
from optbench.steps.pruning.latency import FIT_VERSION, LayerTimes, probe_bodies

__all__ = [
    "Cache",
    "Plan",
    "PlannedStep",
    "finishing_steps",
    "layer_times_path",
    "library_versions",
    "make_plan",
    "read_layer_times",
    "step_key",
]


@dataclass(frozen=True)
class Cache:
    """Where finished work lies. Everything below it may be deleted at any time; it is made again."""

    root: Path

    @property
    def artifacts(self) -> Path:
        """Sealed artifacts, one folder a key."""
        return self.root / "artifacts"

    @property
    def reports(self) -> Path:
        """What each step said when it ran, one JSON file a key."""
        return self.root / "reports"

    @property
    def embeddings(self) -> Path:
        """Vectors by content hash."""
        return self.root / "embeddings"

    @property
    def staging(self) -> Path:
        """Folders that are being filled."""
        return self.root / "staging"

    @property
    def layer_times(self) -> Path:
        """What layers cost in milliseconds, one JSON file a key."""
        return self.root / "layer_times"

    @property
    def unfinished(self) -> Path:
        """What steps that were killed go on from, one folder a key; `apply` removes it after 30 days without a change."""
        return self.root / "unfinished"

    @property
    def environments(self) -> Path:
        """Pinned Python environments of libraries that cannot be installed beside optbench."""
        return self.root / "environments"

    def artifact(self, key: str) -> Path:
        """The artifact of a key, present or not."""
        return self.artifacts / key

    def report(self, key: str) -> Path:
        """The report of a key, present or not."""
        return self.reports / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether a step's artifact and report are both present; neither is verified here."""
        return self.artifact(key).is_dir() and self.report(key).is_file()


class PlannedStep(Frozen):
    """A step in its place.

    Attributes:
        index: its place in the recipe, from 0; -1 for the export that the fp32 baselines run on.
        key: its cache key; None while the step before it has not run, whose result is part of it.
        state: `cached` results are used; `run` steps run.
        estimate_bytes: what its output is expected to take on disk.
        predicted_ms: of a pruned body as the recipe finishes it, by length; None where layers have not been timed on this machine.
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
    """What `optbench apply` would do."""

    recipe: str
    recipe_sha256: str
    weights: str
    base: str
    base_key: str
    base_state: str
    steps: tuple[PlannedStep, ...]
    missing_bytes: int


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions of distributions; `missing` where there is none."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def step_key(
    step: Step,
    source_sha256: str,
    machine: Machine,
    calibration: Sequence[str],
    engine: Mapping[str, object],
    folder: Path = Path(),
    layer_times: LayerTimes | None = None,
    *,
    base_sha256: str | None = None,
    judged_sha256: str | None = None,
) -> str:
    """The cache key of a step on a source: anything that may change its output is in it.

    Args:
        step: the recipe entry.
        source_sha256: of the artifact it takes.
        machine: its instruction set is always part of the key; a priced step's result belongs to the whole machine.
        calibration: the texts, for steps that calibrate.
        engine: the engine that prices, for steps that ask for a price.
        folder: what relative paths in the step's options are relative to.
        layer_times: for a step with a latency target.
        base_sha256: of the recipe's base, for steps that read it.
        judged_sha256: of the tasks' texts, for steps that must not train on them.

    Raises:
        TaskError: a file that the step reads is missing.
    """
    parts: list[object] = [
        source_sha256,
        step.model_dump(mode="json"),
        step.version,
        library_versions(step.libraries),
        machine.isa,
        list(calibration) if step.needs_calibration else None,
        [machine.fingerprint, engine] if step.needs_price else None,
    ]
    if step.needs_base:
        parts.append(base_sha256)
    if step.needs_judged:
        parts.append(judged_sha256)
    files = step.files(folder)
    if files:
        parts.append({name: hash_file(path) for name, path in files.items()})
    if layer_times is not None:
        parts.append(layer_times.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finishing_steps(recipe: Recipe) -> list[Step]:
    """The steps that turn a checkpoint into what is served: those after the last that works on checkpoints."""
    last = max((index for index, step in enumerate(recipe.steps) if step.gives is Kind.CHECKPOINT), default=-1)
    return list(recipe.steps[last + 1 :])


def layer_times_path(recipe: Recipe, cache: Cache) -> Path:
    """Where the times of the recipe's layers are kept: anything that may change them is in the name."""
    steps = finishing_steps(recipe)
    kind = steps[-1].gives if steps else Kind.CHECKPOINT
    parts: list[object] = [
        FIT_VERSION,
        [body.model_dump(mode="json") for body in probe_bodies(recipe.base.body)],
        [[step.model_dump(mode="json"), step.version, library_versions(step.libraries)] for step in steps],
        recipe.engine_for(kind).model_dump(mode="json"),
        [recipe.workload.lengths, recipe.workload.batch],
        read_machine().fingerprint,
    ]
    return cache.layer_times / f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}.json"


def read_layer_times(recipe: Recipe, cache: Cache) -> LayerTimes | None:
    """The times that were measured for the recipe on this machine; None before they are."""
    try:
        return LayerTimes.model_validate_json(layer_times_path(recipe, cache).read_bytes())
    except (OSError, ValueError):
        return None


def start_index(recipe: Recipe, name: str | None) -> int:
    """The index that `--from` names: a step's name, or its number from 0; the end of the recipe when None.

    Raises:
        RecipeError: no such step; lists those there are.
    """
    if name is None:
        return len(recipe.steps)
    names = [step.step for step in recipe.steps]
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    if name not in names:
        raise RecipeError(f"--from {name}: recipe {recipe.name} has no such step; it has {', '.join(names)}")
    return names.index(name)


def make_plan(
    recipe: Recipe,
    cache: Cache,
    machine: Machine,
    *,
    weights: str = "real",
    base: str | None = None,
    calibration: Sequence[str] = (),
    judged_sha256: str | None = None,
    from_step: str | None = None,
) -> Plan:
    """Plan a run of the recipe; nothing is verified, loaded or written."""
    forced = start_index(recipe, from_step)
    key = base_key(recipe.base, "random" if weights == "random" else "real", base)
    here = cache.artifact(key)
    source = read_manifest_sha256(here)
    planned = []
    # Four bytes a parameter; every later form is at most that large.
    size = 4 * recipe.base.body.parameters
    missing = 0 if source else size
    export = ExportOnnx(step="export_onnx")
    prunes = any(isinstance(step, PruneStructured) for step in recipe.steps)
    times = read_layer_times(recipe, cache) if prunes else None
    sources = {-1: source}
    for index, step in [(-1, export), *enumerate(recipe.steps)]:
        given = sources[index - 1] if index > 0 else source
        own_key = None
        if given is not None:
            engine = recipe.engine_for(step.gives).model_dump(mode="json")
            # A step whose layers are still to be timed has no key yet: it runs.
            in_ms = isinstance(step, PruneStructured) and step.needs_layer_times
            if not in_ms or times is not None:
                own_key = step_key(
                    step,
                    given,
                    machine,
                    calibration,
                    engine,
                    recipe.folder,
                    times if in_ms else None,
                    base_sha256=source,
                    judged_sha256=judged_sha256,
                )
        cached = own_key is not None and cache.has(own_key) and index < forced
        sources[index] = read_manifest_sha256(cache.artifact(own_key)) if cached and own_key else None
        takes = Kind.CHECKPOINT if index <= 0 else recipe.steps[index - 1].gives
        if index == -1 and recipe.steps[0] == export:
            continue  # the recipe's own first step is that export
        missing += 0 if cached else size
        planned.append(
            PlannedStep(
                index=index,
                step=step.step,
                takes=takes,
                gives=step.gives,
                key=own_key,
                state="cached" if cached else "run",
                estimate_bytes=size,
                predicted_ms=_in_ms(times, step.foresee(recipe.base.body, times)) if times and isinstance(step, PruneStructured) else None,
                whole_ms=_in_ms(times, recipe.base.body.sizes) if times and isinstance(step, PruneStructured) else None,
            )
        )
    return Plan(
        recipe=recipe.name,
        recipe_sha256=recipe.sha256,
        weights=weights,
        base=base or ("random" if weights == "random" else recipe.base.source),
        base_key=key,
        base_state="cached" if source else "obtain",
        steps=tuple(planned),
        missing_bytes=missing,
    )


def _in_ms(times: LayerTimes, sizes: Sequence[tuple[int, int]]) -> dict[int, float]:
    return {length: times.body_ms(sizes, length) for length in times.lengths}
