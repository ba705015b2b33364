"""The results of a run: one committed JSON file per model and question. docs/peers.md shows them as tables."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

import optbench
from bench.peers.base import Interface, Peer
from bench.peers.workbench import Built
from optbench.artifact.manifest import Weights
from optbench.machine.cpu import Machine, read_machine
from optbench.measure.accuracy import AccuracyResult
from optbench.measure.fidelity import Fidelity
from optbench.measure.latency import RoundTimes
from optbench.measure.statistics import Change, Interval

__all__ = ["FOLDER", "AccuracyRow", "AccuracyRun", "LatencyRow", "LatencyRun", "about", "round_medians", "stamp", "write_run"]

FOLDER = Path(__file__).parent / "results"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Row(_Part):
    """A peer.

    Attributes:
        name: of the peer.
        precision: of its products.
        how: how it was set up.
        reason: why it did not run; None if it did. A row with a reason has no figures.
        versions: of its libraries.
        build_seconds: duration of export and quantization.
    """

    name: str
    precision: str
    how: str
    reason: str | None
    versions: dict[str, str]
    build_seconds: float


class LatencyRow(_Row):
    """Latency of a peer.

    Attributes:
        round_medians_ns: by length, the median of each round.
        ms: by length, the typical latency with its interval.
        speedup: by length, over the run's first row, round by round.
        load_ms: time to open the model.
        peak_rss_bytes: of its process.
        unstable: lengths at which the times did not settle during warm-up.
    """

    round_medians_ns: dict[int, tuple[int, ...]] = {}
    ms: dict[int, Interval] = {}
    speedup: dict[int, Interval] = {}
    load_ms: float | None = None
    peak_rss_bytes: int | None = None
    unstable: tuple[int, ...] = ()


class AccuracyRow(_Row):
    """Accuracy of a peer.

    Attributes:
        fidelity: cosine to torch eager over the tasks' queries.
        accuracy: one entry per task; empty with random weights.
        change: by task, relative to torch eager, paired by query.
    """

    fidelity: Fidelity | None = None
    accuracy: tuple[AccuracyResult, ...] = ()
    change: dict[str, Change] = {}


class _Run(_Part):
    schema_version: Literal[1] = 1
    created: str
    optbench: str
    model: str
    weights: Weights
    machine: Machine
    threads: int
    warnings: tuple[str, ...]


class LatencyRun(_Run):
    """Peers with the same interface, timed in alternation at batch 1."""

    kind: Literal["latency"] = "latency"
    interface: Interface
    rounds: int
    processes: int
    rows: tuple[LatencyRow, ...]


class AccuracyRun(_Run):
    """All peers on the same texts."""

    kind: Literal["accuracy"] = "accuracy"
    rows: tuple[AccuracyRow, ...]


def about(peer: Peer, built: Built) -> dict[str, object]:
    """The fields that both kinds of rows share."""
    return {
        "name": peer.name,
        "precision": peer.precision,
        "how": peer.how,
        "reason": built.reason,
        "versions": dict(built.versions or {}),
        "build_seconds": built.seconds,
    }


def stamp() -> dict[str, object]:
    """The fields that both kinds of runs share: where and when."""
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "optbench": optbench.__version__,
        "machine": read_machine(),
    }


def round_medians(times: RoundTimes) -> dict[int, tuple[int, ...]]:
    """By length, the median of each round in nanoseconds."""
    return {length: tuple(int(np.median(block)) for block in blocks) for length, blocks in times.samples_ns.items()}


def write_run(run: LatencyRun | AccuracyRun) -> Path:
    """Write a run's file; an earlier run of the same model and kind is replaced."""
    name = run.interface if isinstance(run, LatencyRun) else run.kind
    path = FOLDER / f"{run.model}-{name}.json"
    FOLDER.mkdir(exist_ok=True)
    path.write_text(run.model_dump_json() + "\n", encoding="utf-8")
    return path
