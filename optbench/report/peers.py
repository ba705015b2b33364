"""Results of the peers, other ways to run the same models on the same machine, from the files of the peers' benchmark."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from optbench.errors import RecordError
from optbench.measure.fidelity import Fidelity
from optbench.measure.statistics import Change, Interval
from optbench.report.decimals import fixed
from optbench.report.table import Table

__all__ = ["PeerRun", "peer_tables", "read_peers", "speedup_rows"]

BYTES_MAX = 64 * 1024 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PeerRow(_Part):
    """A peer's latency by length, or its accuracy, depending on the run; or the reason why it did not run."""

    name: str
    precision: str = ""
    reason: str | None = None
    round_medians_ns: dict[int, tuple[int, ...]] = {}
    speedup: dict[int, Interval] = {}
    fidelity: Fidelity | None = None
    change: dict[str, Change] = {}


class PeerRun(_Part):
    """One run of the peers, with a row for each; speed-ups are over the first. `interface` is the form of the input in latency runs."""

    schema_version: Literal[1]
    kind: Literal["latency", "accuracy"]
    model: str
    weights: str
    created: str
    threads: int
    interface: str = ""
    rows: tuple[PeerRow, ...]


def read_peers(path: Path) -> list[PeerRun]:
    """Read the runs of a file, or of all .json files of a folder.

    Raises:
        RecordError: missing or invalid; names the file.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise RecordError(f"{path}: has no .json files; name a folder of the peers' results")
    return [_read_run(file) for file in files]


def _read_run(path: Path) -> PeerRun:
    try:
        if path.stat().st_size > BYTES_MAX:
            raise RecordError(f"{path}: expected a run of the peers of at most {BYTES_MAX} bytes")
        document: Any = json.loads(path.read_bytes())
        return PeerRun.model_validate(document)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}; name a file or folder of the peers' results") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(
            f"{path}: not a run of the peers: {'.'.join(map(str, first['loc'])) or 'top'}: {first['msg']}; measure again"
        ) from error
    except ValueError as error:
        raise RecordError(f"{path}: not JSON ({error}); the file may be truncated") from error


def _length(run: PeerRun) -> int | None:
    """The length nearest to 16 tokens that every peer that ran was timed at."""
    shared = [set(row.round_medians_ns) for row in run.rows if row.reason is None]
    lengths = set.intersection(*shared) if shared else set()
    return min(lengths, key=lambda length: (abs(length - 16), length), default=None)


def speedup_rows(run: PeerRun) -> list[dict[str, Any]]:
    """One row per timed peer, fastest first, for `plots.peers_plot`."""
    length = _length(run)
    rows = []
    for row in run.rows:
        if row.reason is None and length is not None and length in row.speedup:
            found = row.speedup[length]
            (ms,) = fixed([median(row.round_medians_ns[length]) / 1e6])
            text = {"text": f"{found.point:.2f}x", "more": f"{ms} ms at {length} tokens"}
            rows.append({"model": _named(row), "x": found.point, "low": found.low, "high": found.high, **text})
    return sorted(rows, key=lambda row: -row["x"])


def _named(row: PeerRow) -> str:
    return f"{row.name} {row.precision}".strip()


def peer_tables(run: PeerRun) -> list[Table]:
    """The tables of a run, and of the peers that did not run."""
    about = f"{run.model}, {run.weights} weights, {run.threads} threads, {run.created}" + (
        f", input: {run.interface}" if run.interface else ""
    )
    ran = [row for row in run.rows if row.reason is None]
    if run.kind == "latency":
        lengths = sorted({length for row in ran for length in row.round_medians_ns})
        columns = [_speed_cells(ran, length) for length in lengths]
        rows = [list(row) for row in zip(map(_named, ran), *columns, strict=True)]
        note = f"Median ms, and the speed-up over {_named(ran[0]) if ran else 'the first'} in the same rounds. {about}."
        tables = [Table("Peers: latency in ms by tokens", ["peer", *map(str, lengths)], rows, note)]
    else:
        tasks = list(dict.fromkeys(task for row in ran for task in row.change))
        rows = [[_named(row), *_cosine_cells(row), *(_change_cell(row, task) for task in tasks)] for row in ran]
        note = f"Cosine to torch eager; relative change in % against it, with its paired 95 % interval. {about}."
        tables = [Table("Peers: accuracy", ["peer", "cosine", "worst", *tasks], rows, note)]
    left = [[_named(row), row.reason] for row in run.rows if row.reason is not None]
    tables.append(Table("Peers that did not run", ["peer", "reason"], left, about + "."))
    return [table for table in tables if table.rows]


def _speed_cells(rows: Sequence[PeerRow], length: int) -> list[str]:
    """A column: each peer's milliseconds and speed-up; empty where it was not timed."""
    medians = [median(row.round_medians_ns[length]) / 1e6 if row.round_medians_ns.get(length) else None for row in rows]
    shown = iter(fixed([ms for ms in medians if ms is not None]))
    cells = ["" if ms is None else next(shown) for ms in medians]
    return [
        f"{cell} ({row.speedup[length].point:.2f}x)" if cell and length in row.speedup else cell
        for row, cell in zip(rows, cells, strict=True)
    ]


def _cosine_cells(row: PeerRow) -> list[str]:
    return [f"{row.fidelity.mean:.4f}", f"{row.fidelity.minimum:.4f}"] if row.fidelity else ["", ""]


def _change_cell(row: PeerRow, task: str) -> str:
    change = row.change.get(task)
    return "" if change is None else f"{100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})"
