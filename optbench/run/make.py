"""Making artifacts: each step in a process of its own, its output sealed into the cache and verified before it is used again."""

import logging
import shutil
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact, open_artifact, read_manifest_sha256, seal
from optbench.base.entry import Base
from optbench.base.obtain import obtain_base
from optbench.errors import ArtifactError, StepError
from optbench.machine.cpu import Machine
from optbench.machine.disk import full_disk_errors
from optbench.machine.progress import Progress
from optbench.machine.worker import Worker, peak_rss_bytes
from optbench.model.checkpoint import read_body
from optbench.run.cache import Cache
from optbench.run.conformance import read_conformance
from optbench.run.inputs import RESOLVERS, receive
from optbench.run.listener import Listener
from optbench.run.plan import Item, Run, Stage, StepOutcome, walk
from optbench.steps import Step
from optbench.steps.base import StepContext, StepReport

__all__ = ["Maker", "make_stages"]

logger = logging.getLogger(__name__)


class Maker:
    """Gives each item of a run its artifact: from the cache, or by making it. `walk` takes it as `produce`."""

    def __init__(self, run: Run, listener: Listener) -> None:
        self._run, self._cache, self._listener = run, run.cache, listener

    def __call__(self, item: Item) -> Stage:
        """Find an item's artifact in the cache, or make it.

        Raises:
            BaseModelError: the base cannot be obtained, or contradicts the recipe.
            StepError: from the step, with the item's label in front.
            MachineError: the disk is full, or the step's process was killed.
        """
        self._listener.begin(item.label)
        if item.step is None:
            return self._obtain_base(item)
        if item.source is None or item.key is None:
            raise StepError(f"{item.label}: its source was not made")
        cached = None if item.forced else self._find(item, item.key)
        if cached is not None:
            self._listener.end("cached")
            return cached
        return self._run_step(item, item.step, item.source, item.key)

    def _obtain_base(self, item: Item) -> Stage:
        recipe, options = self._run.recipe, self._run.options
        payload = {
            "base": recipe.base.model_dump(mode="json"),
            "cache": str(self._cache.root),
            "weights": options.weights,
            "override": options.base,
            "key": item.key,
        }
        before = read_manifest_sha256(self._cache.artifact(self._run.base_key))
        with Worker(serve_base, payload) as worker:
            answer = worker.request({}, self._listener.update)
        outcome = StepOutcome.model_validate(answer["outcome"])
        # The child has just written or verified every byte.
        artifact = open_artifact(Path(answer["path"]), verify=False)
        cached = before == artifact.sha256
        compared = f"; {answer['summary']}" if answer["summary"] else ""
        self._listener.end(f"{'cached, verified, ' if cached else ''}{artifact.size_bytes / 1e6:.0f} MB, {outcome.seconds:.1f} s{compared}")
        return Stage(item, artifact, outcome, cached=cached)

    def _find(self, item: Item, key: str) -> Stage | None:
        """The cached artifact of a key if every byte is as it was sealed; a broken one is removed."""
        if not self._cache.has(key):
            return None
        try:
            artifact = open_artifact(self._cache.artifact(key))
            outcome = StepOutcome.model_validate_json(self._cache.report(key).read_bytes())
        except (ArtifactError, ValueError, OSError) as error:
            logger.warning("%s: the cached artifact is broken and is made again: %s", item.label, error)
            shutil.rmtree(self._cache.artifact(key), ignore_errors=True)
            return None
        return Stage(item, artifact, outcome)

    def _run_step(self, item: Item, step: Step, source: Artifact, key: str) -> Stage:
        with self._cache.stage() as staging, ExitStack() as lent:
            out, scratch = staging / "out", staging / "scratch"
            out.mkdir()
            scratch.mkdir()
            inputs = {
                kind.__name__: lent.enter_context(RESOLVERS[kind].lend(resolution.payload, self._run, key, item.label))
                for kind, resolution in item.resolutions.items()
            }
            payload = {
                "step": step.model_dump(mode="json"),
                "source": str(source.path),
                "out": str(out),
                "scratch": str(scratch),
                "inputs": inputs,
                "machine": self._run.machine.model_dump(mode="json"),
            }
            try:
                with Worker(serve_step, payload) as worker:
                    outcome = StepOutcome.model_validate(worker.request({}, self._listener.update))
            except StepError as error:
                raise StepError(f"{item.label}: {error}") from error
            self._listener.update("sealing", None)
            # The report goes first: an artifact without its report would be made again, and that is safe.
            report = self._cache.report(key)
            report.parent.mkdir(parents=True, exist_ok=True)
            draft = staging / "report.json"
            with full_disk_errors(staging):
                draft.write_text(outcome.model_dump_json(), encoding="utf-8")
            draft.replace(report)
            artifact = seal(out, self._cache.artifact(key), step.gives, source.weights, read_body(out).layer_sizes)
        self._listener.end(f"{outcome.seconds:.1f} s, peak {outcome.peak_rss_bytes / 1e9:.2f} GB")
        return Stage(item, artifact, outcome, cached=False)


def make_stages(run: Run, listener: Listener) -> list[Stage]:
    """Make the base and every step of a recipe without measuring anything: the base's stage, then one a step."""
    return [stage for _, stage in walk(run, Maker(run, listener), work=True, baseline=False) if stage is not None]


def serve_base(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The process of `Maker._obtain_base`: it keeps a download, the random weights and the libraries out of this process's memory."""
    yield
    start = time.perf_counter()
    base, cache = Base.model_validate(payload["base"]), Cache(Path(payload["cache"]))
    artifact = obtain_base(
        base,
        cache=cache.root,
        weights=payload["weights"],
        override=payload["override"],
        key=payload["key"],
        progress=progress,
    )
    found = read_conformance(artifact, base, cache, override=payload["override"], progress=progress)
    report = StepReport()
    if found is not None:
        warnings = () if found.vectors_of else (f"base: {found.summary}",)
        report = StepReport(warnings=warnings, facts={"conformance": found.model_dump(mode="json")})
    outcome = StepOutcome(report=report, seconds=time.perf_counter() - start, peak_rss_bytes=peak_rss_bytes())
    yield {"path": str(artifact.path), "outcome": outcome.model_dump(mode="json"), "summary": found.summary if found else ""}


def serve_step(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The process of `Maker._run_step`: one step, and then it ends with all its memory."""
    yield
    step: Step = TypeAdapter(Step).validate_python(payload["step"])
    source, out = open_artifact(Path(payload["source"]), verify=False), Path(payload["out"])
    machine = Machine.model_validate(payload["machine"])
    context = StepContext(Path(payload["scratch"]), machine, progress, receive(payload["inputs"]))
    start = time.perf_counter()
    with full_disk_errors(out):
        report = step.run(source, out, context)
    outcome = StepOutcome(report=report, seconds=time.perf_counter() - start, peak_rss_bytes=peak_rss_bytes())
    yield outcome.model_dump(mode="json")
