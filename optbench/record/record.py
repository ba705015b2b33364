"""The record of a run: the raw measurements and the machine. Append-only.

Schema history:
    1  first: points, timings with raw nanoseconds, accuracy per query, serving times, machine, libraries, warnings.
    2  adds, each optional: accuracy of queries alone against an fp32 index and the share of fp32's top 10 that stays
       (`overlap`, `query_side`), the recipe's `targets.index`, stability of the embeddings, serving scenarios,
       how many processes each model was timed in (records of schema 1: one, unless they say otherwise).
    3  adds, each optional: cosine over hostile texts of each point. Records of schemas 1 and 2 can still be read.
"""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue, ValidationError

from optbench.artifact.manifest import Kind, Weights
from optbench.errors import RecordError
from optbench.machine.cpu import Isa, Machine
from optbench.machine.frozen import Frozen
from optbench.measure.accuracy import AccuracyResult
from optbench.measure.fidelity import Fidelity
from optbench.measure.latency import ServingTimes, Timing
from optbench.measure.load.report import ScenarioReport
from optbench.measure.stability import Stability
from optbench.recipe.schema import Recipe
from optbench.steps.base import StepReport

__all__ = ["Point", "Record", "check_comparable", "find_record", "newest_record", "read_record", "write_record"]

SCHEMA_VERSION = 3
SCHEMAS_READ = (1, 2, 3)
# A record of a large judged task has some megabytes of per-query values.
RECORD_BYTES_MAX = 256 * 1024 * 1024


class Point(Frozen):
    """The model as one step left it.

    Attributes:
        label: the step's position and name; `base` for the model before any step.
        step: the recipe entry as JSON; None for the base.
        size_bytes: of all its files.
        engine: options of the engine that it was measured in.
        timing: label of its entry in the record's timings; None if latency was not measured.
        cached: whether the step's result came from the cache.
        seconds: how long the step took when it ran.
        peak_rss_bytes: of the step's process when it ran, file-backed pages included.
        fidelity_to_source: cosine to the step's input artifact, if the step changes numbers.
        fidelity_to_base: cosine to the base in torch fp32.
        hostile_to_source: like fidelity_to_source, over hostile texts; None with random weights.
        hostile_to_base: like fidelity_to_base, over hostile texts; None with random weights.
        accuracy: one entry per task; empty with random weights.
    """

    label: str
    step: dict[str, JsonValue] | None
    kind: Kind
    artifact_sha256: str
    size_bytes: int
    engine: dict[str, JsonValue]
    timing: str | None
    cached: bool
    seconds: float
    peak_rss_bytes: int
    report: StepReport
    fidelity_to_source: Fidelity | None = None
    fidelity_to_base: Fidelity | None = None
    hostile_to_source: Fidelity | None = None
    hostile_to_base: Fidelity | None = None
    accuracy: tuple[AccuracyResult, ...] = ()


class Record(Frozen):
    """One run of a recipe.

    Attributes:
        created: UTC, ISO 8601.
        optbench: its version.
        base: where the base came from.
        weights: `random` weights give true latency and meaningless accuracy.
        isa: the instruction set it was limited to; None for no limit.
        threads: intra-op threads of every engine.
        libraries: their versions by name.
        points: the base, then one per step.
        timings: of the points and the fp32 baselines, all in one interleaved run.
        baselines: labels of the timings that are fp32 baselines.
        serving: the final artifact on the tasks' real queries.
        stability: of the final artifact's embeddings, if the recipe requests it.
        scenarios: the final artifact under a service's load, if the recipe requests it.
        warnings: reasons to doubt the figures.
    """

    schema_version: Literal[1, 2, 3] = 3
    created: str
    optbench: str
    recipe: Recipe
    recipe_sha256: str
    base: str
    weights: Weights
    machine: Machine
    isa: Isa | None
    threads: int
    libraries: dict[str, str]
    points: tuple[Point, ...]
    timings: tuple[Timing, ...]
    baselines: tuple[str, ...]
    serving: ServingTimes | None
    stability: Stability | None = None
    scenarios: ScenarioReport | None = None
    warnings: tuple[str, ...]

    def timing(self, label: str) -> Timing:
        """The timing of that label."""
        return next(timing for timing in self.timings if timing.label == label)

    @property
    def final(self) -> Point:
        """The last step's point, which is judged and exported."""
        return self.points[-1]

    @property
    def file_name(self) -> str:
        """The record's file name; names sort by time."""
        stamp = re.sub(r"[^0-9TZ]", "", self.created)
        return f"{stamp}-{self.recipe.name}-{self.weights}-{self.final.artifact_sha256[:8]}.json"


def write_record(record: Record, folder: Path) -> Path:
    """Write a record; earlier records are never changed.

    Raises:
        RecordError: a record of that name already exists, or the disk is full.
    """
    path = folder / record.file_name
    if path.exists():
        raise RecordError(f"{path}: already exists, and records are never overwritten; move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".staging-", delete=False, encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}; free some space and run again") from error
    return path


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        RecordError: missing, broken, or of an unknown schema.
    """
    try:
        if path.stat().st_size > RECORD_BYTES_MAX:
            raise RecordError(f"{path}: expected a record of at most {RECORD_BYTES_MAX} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}; name a record under exported/RECIPE/records") from error
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON ({error}); the file may be truncated") from error
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if schema not in SCHEMAS_READ:
        raise RecordError(
            f"{path}: has schema {schema}; expected {SCHEMAS_READ[0]} to {SCHEMA_VERSION}; use the optbench version that wrote it"
        )
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: broken at {where}: {first['msg']}; measure again") from error


def newest_record(folder: Path) -> Record:
    """The newest record of an exported folder.

    Raises:
        RecordError: the folder has none.
    """
    paths = sorted((folder / "records").glob("*.json"))
    if not paths:
        raise RecordError(f"{folder}: has no records/*.json; name a record, or a folder that optbench apply wrote")
    return read_record(paths[-1])


def find_record(path: Path) -> Record:
    """Read the record of a file, or the newest of an exported folder."""
    return newest_record(path) if path.is_dir() else read_record(path)


def check_comparable(records: Sequence[Record]) -> None:
    """Check that the latencies of records can be compared.

    Raises:
        RecordError: names what differs, and both values.
    """
    first = records[0]
    for other in records[1:]:
        differences = [
            f"{what}: {one} and {two}"
            for what, one, two in (
                ("machine", f"{first.machine.cpu} ({first.machine.fingerprint})", f"{other.machine.cpu} ({other.machine.fingerprint})"),
                ("instruction set", first.isa or "all", other.isa or "all"),
                ("threads", first.threads, other.threads),
                ("batch", first.recipe.workload.batch, other.recipe.workload.batch),
                ("lengths", first.recipe.workload.lengths, other.recipe.workload.lengths),
                ("weights", first.weights, other.weights),
            )
            if one != two
        ]
        if differences:
            raise RecordError(
                f"records of {first.created} and {other.created} cannot be compared: {'; '.join(differences)}; measure both alike"
            )
