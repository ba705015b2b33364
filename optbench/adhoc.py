"""Measuring outside a recipe's run: any artifacts against each other, and a machine's floors."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from optbench.artifact import open_artifact
from optbench.engines import Engine, default_engine
from optbench.errors import EngineError
from optbench.evidence import timing_warnings
from optbench.machine import Isa
from optbench.measure.accuracy import AccuracyResult, accuracy_change, measure_accuracy
from optbench.measure.encoding import TextEncoder
from optbench.measure.environment import check_environment
from optbench.measure.latency import Cell, Timing, measure_latency
from optbench.measure.statistics import percentile_interval, ratio_interval
from optbench.plan import Cache
from optbench.report.table import Table
from optbench.runner import ENGINE_FILE
from optbench.stages import Listener
from optbench.tasks import Task

__all__ = ["Measured", "RecipeFloor", "floors_of_recipes", "machine_table", "measure_artifacts"]


class Measured(BaseModel):
    """What `optbench measure` found: one timing an artifact, from one interleaved run, and accuracy by artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timings: tuple[Timing, ...]
    accuracy: dict[str, tuple[AccuracyResult, ...]]
    warnings: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Latency by length against the first artifact, tails, accuracy against the first artifact."""
        first = self.timings[0]
        lengths = list(first.samples_ns)
        speed, tails = [], []
        for timing in self.timings:
            cells, spread = [], []
            for length in lengths:
                ratio = ratio_interval(first.samples_ns[length], timing.samples_ns[length])
                cells.append(f"{timing.median_ms(length):.2f}" + ("" if timing is first else f" ({ratio.point:.2f}x)"))
                samples = [ns / 1e6 for block in timing.samples_ns[length] for ns in block]
                spread.append(" / ".join(f"{percentile_interval(samples, q).point:.2f}" for q in (90, 99)))
            speed.append([timing.label, *cells])
            tails.append([timing.label, *spread])
        head = ["model", *map(str, lengths)]
        tables = [
            Table("p50 latency in ms by tokens", head, speed, f"(x): speed-up over {first.label}, taken round by round."),
            Table("p90 / p99 latency in ms by tokens", head, tails),
        ]
        base = {result.task: result for result in self.accuracy.get(first.label, ())}
        rows = []
        for label, results in self.accuracy.items():
            for result in results:
                change = accuracy_change(base[result.task], result)
                shown = "" if label == first.label else f"{100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})"
                rows.append([label, f"{result.main_metric} {result.task}", f"{result.mean():.4f}", shown])
        note = f"Change: relative, in %, against {first.label}, with its paired 95 % interval."
        return [*tables, Table("Accuracy", ["model", "metric", "value", "change"], rows, note)]


def _engine_for(folder: Path, text: str | None) -> Engine:
    """The engine asked for: JSON or a name; else the one exported with the artifact; else the kind's default."""
    adapter: TypeAdapter[Engine] = TypeAdapter(Engine)
    try:
        if text is not None:
            return adapter.validate_python(json.loads(text) if text.lstrip().startswith("{") else {"engine": text})
        settings = folder / ENGINE_FILE
        if settings.is_file():
            return adapter.validate_json(settings.read_bytes())
    except (ValidationError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise EngineError(
            f'--engine {text or folder / ENGINE_FILE}: {reason}; give a name or JSON such as {{"engine": "openvino"}}'
        ) from error
    return default_engine(open_artifact(folder, verify=False).kind)


def measure_artifacts(
    folders: Sequence[Path],
    engine: str | None,
    lengths: Sequence[int],
    batch: int,
    rounds: int,
    tasks: Sequence[Task],
    cache: Cache,
    isa: Isa | None,
    listener: Listener,
) -> Measured:
    """Time artifacts against each other, and measure their accuracy on tasks.

    Raises:
        ArtifactError: a folder is not a whole artifact.
        EngineError: the engine's options are broken, or it cannot open an artifact.
    """
    cells = []
    for index, folder in enumerate(folders):
        artifact = open_artifact(folder)
        chosen = _engine_for(folder, engine)
        chosen.check_opens(artifact)
        label = folder.name if [path.name for path in folders].count(folder.name) == 1 else f"{index} {folder}"
        cells.append(Cell(label=label, kind=artifact.kind, path=folder, sha256=artifact.sha256, engine=chosen))
    listener.begin("latency")
    timings = measure_latency(cells, lengths, batch=batch, rounds=rounds, isa=isa, progress=listener.update)
    listener.end(f"{len(cells)} models at {len(lengths)} lengths, {rounds} rounds")
    accuracy: dict[str, tuple[AccuracyResult, ...]] = {}
    data = [task.load() for task in tasks]
    for cell in cells if data else []:
        listener.begin(f"accuracy of {cell.label}")
        artifact = open_artifact(cell.path, verify=False)
        with TextEncoder(artifact, cell.engine, cache.embeddings, isa=isa, progress=listener.update) as encode:
            accuracy[cell.label] = tuple(measure_accuracy(encode, each) for each in data)
        listener.end("; ".join(f"{result.main_metric} {result.mean():.4f} on {result.task}" for result in accuracy[cell.label]))
    return Measured(timings=timings, accuracy=accuracy, warnings=(*check_environment(), *timing_warnings(timings)))
