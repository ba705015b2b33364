"""Making artifacts: each step in a process of its own, sealed into the cache, verified before it is used again."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact, Weights, open_artifact, read_manifest_sha256, seal
from optbench.base.obtain import Base, base_key, obtain_base
from optbench.engines import Engine
from optbench.errors import ArtifactError, MachineError, StepError
from optbench.machine.cpu import read_machine
from optbench.machine.disk import full_disk_errors
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress
from optbench.machine.worker import Worker, peak_rss_bytes
from optbench.measure.latency import price_folders
from optbench.model.checkpoint import read_body
from optbench.recipe.schema import Recipe
from optbench.run.plan import Cache, step_key
from optbench.steps import Step
from optbench.steps.base import StepContext, StepReport
from optbench.steps.pruning.latency import LayerTimes
from optbench.tasks import JudgedTexts, Task, judged_texts
from optbench.tasks.general import general_texts

__all__ = [
    "Listener",
    "Made",
    "Stage",
    "calibration_texts",
    "make_base",
    "make_stage",
    "sweep_staging",
    "sweep_unfinished",
    "texts_not_to_train_on",
]

logger = logging.getLogger(__name__)

# Few rounds settle what a fusion gains; the record's own timing is longer.
PRICE_ROUNDS = 7
# A killed training is gone on with within days, or its recipe or a library has changed and its key is never asked for again. It may hold
# several times the model's size.
UNFINISHED_DAYS_MAX = 30
LOCK = ".lock"


class Listener(Protocol):
    """Who watches a run."""

    def begin(self, label: str) -> None:
        """A stage of the work begins."""

    def update(self, message: str, share: float | None) -> None:
        """It is at `share` of its way, where that is known."""

    def end(self, outcome: str) -> None:
        """It ended: `cached`, or what it took."""


class Made(Frozen):
    """What the cache keeps of a step beside its artifact."""

    report: StepReport = StepReport()
    seconds: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True)
class Stage:
    """The model as one step left it, and how that went.

    Attributes:
        label: `base`, or the step's number and name.
        step: None for the base.
        artifact: sealed.
        made: from when the step ran.
        cached: whether that was an earlier time.
    """

    label: str
    step: Step | None
    artifact: Artifact
    made: Made
    cached: bool


def calibration_texts(recipe: Recipe) -> list[str]:
    """The recipe's calibration texts: its first task's, half queries and half documents, prompts in front, then general ones."""
    wanted, prompts = recipe.calibration.texts, recipe.base.prompts
    drawn = recipe.tasks[0].calibration_texts(wanted, recipe.calibration.seed)
    queries = [prompts.query + query for query in drawn.queries[: wanted // 2]]
    documents = [prompts.document + document for document in drawn.documents]
    general = [prompts.document + text for text in general_texts(recipe.calibration.general, recipe.calibration.seed)]
    return [*queries, *documents[: wanted - len(queries)], *general]


def texts_not_to_train_on(recipe: Recipe, tasks: Sequence[Task]) -> JudgedTexts:
    """What the tasks ask and judge, where a step of the recipe needs to know; nothing is read where none does."""
    return judged_texts(tasks) if any(step.needs_judged for step in recipe.steps) else JudgedTexts()


def sweep_staging(cache: Cache) -> None:
    """Remove what runs that are no longer alive left half-filled; a staging folder is named by its process id."""
    for folder in cache.staging.glob("*"):
        owner = folder.name.split("-")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def sweep_unfinished(cache: Cache) -> None:
    """Remove what killed steps left to go on from and nothing has touched for `UNFINISHED_DAYS_MAX` days.

    To be called when a run has made its steps: before, it would take what that very run was to go on from.
    """
    oldest = time.time() - UNFINISHED_DAYS_MAX * 24 * 60 * 60
    for folder in cache.unfinished.glob("*"):
        with suppress(OSError, Timeout):  # another run has just removed it, or is at work in it
            if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < oldest:
                with FileLock(folder / LOCK, timeout=0):
                    logger.info("%s: not gone on with for %d days; removed", folder, UNFINISHED_DAYS_MAX)
                    _forget(folder)


def _staging(cache: Cache) -> tempfile.TemporaryDirectory[str]:
    cache.staging.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=cache.staging, ignore_cleanup_errors=True)


@contextmanager
def _kept_folder(cache: Cache, key: str, label: str) -> Iterator[Path]:
    """The folder that a step goes on from after a kill, for one run at a time; the kernel lets go of it however that ends."""
    folder = cache.unfinished / key
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MachineError(f"{label}: another run is making this very result in {cache.root}; wait for it, and it is found there") from None
    try:
        yield folder
    finally:
        lock.release()


def _forget(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def serve_base(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The child's side of `make_base`."""
    yield
    start = time.perf_counter()
    artifact = obtain_base(
        Base.model_validate(payload["base"]),
        cache=Path(payload["cache"]),
        weights=payload["weights"],
        override=payload["override"],
        progress=progress,
    )
    made = Made(seconds=time.perf_counter() - start, peak_rss_bytes=peak_rss_bytes())
    yield {"path": str(artifact.path), "made": made.model_dump(mode="json")}


def make_base(recipe: Recipe, cache: Cache, weights: Weights, override: str | None, listener: Listener) -> Stage:
    """Bring the base model into the cache, or find it there."""
    listener.begin("base")
    payload = {"base": recipe.base.model_dump(mode="json"), "cache": str(cache.root), "weights": weights, "override": override}
    found = read_manifest_sha256(cache.artifact(base_key(recipe.base, weights, override)))
    with Worker(serve_base, payload) as worker:
        answer = worker.request({}, listener.update)
    made = Made.model_validate(answer["made"])
    # The child has just written or verified every byte.
    artifact = open_artifact(Path(answer["path"]), verify=False)
    cached = found == artifact.sha256
    listener.end(f"{'cached, verified, ' if cached else ''}{artifact.size_bytes / 1e6:.0f} MB, {made.seconds:.1f} s")
    return Stage("base", None, artifact, made, cached=cached)


def serve_step(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The child's side of `make_stage`: one step, then the process ends and all its memory with it."""
    yield
    step: Step = TypeAdapter(Step).validate_python(payload["step"])
    engine: Engine = TypeAdapter(Engine).validate_python(payload["engine"])
    source = open_artifact(Path(payload["source"]), verify=False)
    out = Path(payload["out"])

    def price(folders: Sequence[Path]) -> list[Any]:
        return list(price_folders(step.gives, folders, engine, payload["lengths"], PRICE_ROUNDS))

    context = StepContext(
        scratch=Path(payload["scratch"]),
        machine=read_machine(),
        calibration_texts=payload["calibration"],
        price=price,
        layer_times=LayerTimes.model_validate(payload["layer_times"]) if payload["layer_times"] else None,
        progress=progress,
        folder=Path(payload["folder"]),
        base=open_artifact(Path(payload["base"]), verify=False) if payload["base"] else None,
        judged=JudgedTexts(**payload["judged"]),
        unfinished=Path(payload["unfinished"]) if payload["unfinished"] else None,
    )
    start = time.perf_counter()
    with full_disk_errors(out):
        report = step.run(source, out, context)
    made = Made(report=report, seconds=time.perf_counter() - start, peak_rss_bytes=peak_rss_bytes())
    yield made.model_dump(mode="json")


def make_stage(
    step: Step,
    label: str,
    source: Artifact,
    recipe: Recipe,
    cache: Cache,
    listener: Listener,
    *,
    calibration: Sequence[str],
    force: bool,
    layer_times: LayerTimes | None = None,
    base: Artifact | None = None,
    judged: JudgedTexts | None = None,
) -> Stage:
    """Find a step's result in the cache, or run the step.

    Args:
        step: what to run.
        label: what to call it.
        source: what it takes.
        recipe: for engines and lengths, should the step ask for a price.
        cache: where the result goes.
        listener: is told.
        calibration: texts, prompts in front.
        force: run it even if the cache has it.
        layer_times: for a step with a latency target.
        base: the recipe's base, for steps that read it.
        judged: the tasks' texts, for steps that must not train on them.

    Raises:
        StepError: from the step, with its label in front.
        MachineError: the disk is full, or the step's process was killed.
    """
    listener.begin(label)
    engine = recipe.engine_for(step.gives).model_dump(mode="json")
    judged = judged or JudgedTexts()
    base_sha256 = base.sha256 if base is not None else None
    key = step_key(
        step,
        source.sha256,
        read_machine(),
        calibration,
        engine,
        recipe.folder,
        layer_times,
        base_sha256=base_sha256,
        judged_sha256=judged.sha256,
    )
    if not force:
        found = _find(cache, key, step, label)
        if found is not None:
            listener.end("cached")
            return found
    kept = _kept_folder(cache, key, label) if step.resumes else nullcontext()
    with _staging(cache) as staging, kept as unfinished:
        out, scratch = Path(staging) / "out", Path(staging) / "scratch"
        out.mkdir()
        scratch.mkdir()
        payload = {
            "step": step.model_dump(mode="json"),
            "engine": engine,
            "source": str(source.path),
            "out": str(out),
            "scratch": str(scratch),
            "calibration": list(calibration) if step.needs_calibration else [],
            "lengths": list(recipe.workload.lengths),
            "folder": str(recipe.folder),
            "layer_times": layer_times.model_dump(mode="json") if layer_times else None,
            "base": str(base.path) if base is not None and step.needs_base else None,
            "judged": asdict(judged) if step.needs_judged else {},
            "unfinished": str(unfinished) if unfinished is not None else None,
        }
        try:
            with Worker(serve_step, payload) as worker:
                made = Made.model_validate(worker.request({}, listener.update))
        except StepError as error:
            _forget(unfinished)
            raise StepError(f"{label}: {error}") from error
        listener.update("sealing", None)
        # The report goes first: an artifact without its report would be made again, and that is safe.
        report = cache.report(key)
        report.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(staging) / "report.json"
        with full_disk_errors(draft.parent):
            draft.write_text(made.model_dump_json(), encoding="utf-8")
        draft.replace(report)
        artifact = seal(out, cache.artifact(key), step.gives, source.weights, read_body(out).layer_sizes)
        _forget(unfinished)
    listener.end(f"{made.seconds:.1f} s, peak {made.peak_rss_bytes / 1e9:.2f} GB")
    return Stage(label, step, artifact, made, cached=False)


def _find(cache: Cache, key: str, step: Step, label: str) -> Stage | None:
    """The cached result of a key if every byte of it is as it was sealed; a broken one is removed."""
    if not cache.has(key):
        return None
    try:
        artifact = open_artifact(cache.artifact(key))
        made = Made.model_validate_json(cache.report(key).read_bytes())
    except (ArtifactError, ValueError, OSError) as error:
        logger.warning("%s: the cached result is broken and is made again: %s", label, error)
        shutil.rmtree(cache.artifact(key), ignore_errors=True)
        return None
    return Stage(label, step, artifact, made, cached=True)
