"""Measuring outside a recipe's run: any artifacts against each other, and a machine's floors."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optbench.artifact.folder import open_artifact
from optbench.encoder import choose_engine, load
from optbench.errors import EngineError, MachineError
from optbench.machine.boxes import Box, box_name, matching_box
from optbench.machine.cpu import Isa, Machine
from optbench.machine.floor import Peaks, ProbeResult, floor_ms
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress
from optbench.measure.accuracy import AccuracyResult, accuracy_change, measure_accuracy
from optbench.measure.encoding import TextEncoder
from optbench.measure.latency import Cell, Timing, measure_latency
from optbench.measure.load.concurrency import run_scenarios
from optbench.measure.load.report import ScenarioReport
from optbench.measure.machine_state import check_environment, read_governors, read_turbo
from optbench.measure.stability import Stability, measure_stability
from optbench.measure.statistics import percentile_interval
from optbench.measure.timing_warnings import timing_warnings
from optbench.recipe.schema import Recipe, Scenarios, Workload
from optbench.record.record import newest_record
from optbench.report.accuracy import beside_table
from optbench.report.table import Table
from optbench.run.make import Listener
from optbench.run.measure import query_rows, sample_texts
from optbench.run.plan import Cache
from optbench.tasks import Task, load_tasks

__all__ = [
    "Measured",
    "RecipeFloor",
    "describe_box",
    "floors_of_recipes",
    "machine_table",
    "measure_artifact_scenarios",
    "measure_artifact_stability",
    "measure_artifacts",
    "time_alternately",
]

# As many as a recipe's defaults come to.
ROUNDS_A_PROCESS = 3


class Measured(Frozen):
    """What `optbench measure` found: one timing an artifact, from one interleaved run, and accuracy by artifact."""

    timings: tuple[Timing, ...]
    accuracy: dict[str, tuple[AccuracyResult, ...]]
    warnings: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Latency by length against the first artifact, tails, accuracy against the first and in an index of its documents."""
        first = self.timings[0]
        lengths = list(first.samples_ns)
        speed, tails = [], []
        for timing in self.timings:
            cells, spread = [], []
            for length in lengths:
                ratio = timing.times_as_fast_as(first, length)
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
        if not self.accuracy:
            return tables
        base = {result.task: result for result in self.accuracy[first.label]}
        rows = []
        for label, results in self.accuracy.items():
            for result in results:
                change = accuracy_change(base[result.task], result)
                shown = "" if label == first.label else f"{100 * change.point:+.1f} ({100 * change.low:+.1f}..{100 * change.high:+.1f})"
                rows.append([label, f"{result.main_metric} {result.task}", f"{result.mean():.4f}", shown])
        note = f"Change: relative, in %, against {first.label}, with its paired 95 % interval."
        tables.append(Table("Accuracy", ["model", "metric", "value", "change"], rows, note))
        beside = beside_table(self.accuracy)
        return tables if beside is None else [*tables, beside]


def _parse_engine(text: str | None) -> tuple[str | None, dict[str, Any]]:
    """The command line's engine, a name or JSON, as `choose_engine` takes it."""
    if text is None or not text.lstrip().startswith("{"):
        return text, {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise EngineError(f'--engine {text}: not JSON ({error}); write it as {{"engine": "openvino", "threads": 2}}') from error
    return options.pop("engine", None), options


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
    """Time artifacts against each other, and measure their accuracy on tasks, the later ones' also in an index of the first.

    Raises:
        ArtifactError: a folder is not a whole artifact.
        EngineError: the engine's options are broken, or it cannot open an artifact.
    """
    cells = []
    for index, folder in enumerate(folders):
        artifact = open_artifact(folder)
        chosen = choose_engine(artifact, *_parse_engine(engine))
        chosen.check_opens(artifact)
        label = folder.name if [path.name for path in folders].count(folder.name) == 1 else f"{index} {folder}"
        cells.append(Cell(label=label, kind=artifact.kind, path=folder, sha256=artifact.sha256, engine=chosen))
    environment = check_environment()
    listener.begin("latency")
    timings = measure_latency(cells, lengths, batch=batch, rounds=rounds, isa=isa, progress=listener.update)
    listener.end(f"{len(cells)} models at {len(lengths)} lengths, {rounds} rounds")
    accuracy: dict[str, tuple[AccuracyResult, ...]] = {}
    data = load_tasks(tasks)
    for cell in cells if data else []:
        listener.begin(f"accuracy of {cell.label}")
        with (
            _text_encoder(cells[0], cache, isa, listener) as first,
            _text_encoder(cell, cache, isa, listener) as encode,
        ):
            base = None if cell is cells[0] else first
            accuracy[cell.label] = tuple(measure_accuracy(encode, each, base=base, on_window=encode.begin_part) for each in data)
        listener.end("; ".join(f"{result.main_metric} {result.mean():.4f} on {result.task}" for result in accuracy[cell.label]))
    return Measured(timings=timings, accuracy=accuracy, warnings=(*environment, *timing_warnings(timings)))


def _text_encoder(cell: Cell, cache: Cache, isa: Isa | None, listener: Listener) -> TextEncoder:
    artifact = open_artifact(cell.path, verify=False)
    return TextEncoder(artifact, cell.engine, cache.embeddings, isa=isa, progress=listener.update)


def time_alternately(
    folders: tuple[Path, Path], workload: Workload, isa: Isa | None, *, processes: int, listener: Listener
) -> tuple[Timing, Timing]:
    """Time two artifacts against each other, each in the engine that it was measured with, three rounds a process.

    Args:
        folders: with the weights.
        workload: lengths, batch.
        isa: run as a CPU with this instruction set would.
        processes: how often each is opened anew, one after the other.
        listener: hears of the progress.

    Raises:
        ArtifactError: a folder is not a whole artifact.
        EngineError: an engine cannot open its artifact here.
    """
    cells = []
    for label, folder in zip(("old", "new"), folders, strict=True):
        artifact = open_artifact(folder)
        engine = choose_engine(artifact, None, {})
        cells.append(Cell(label=label, kind=artifact.kind, path=folder, sha256=artifact.sha256, engine=engine))
    listener.begin("latency")
    rounds = ROUNDS_A_PROCESS * processes
    old, new = measure_latency(
        cells, workload.lengths, batch=workload.batch, rounds=rounds, processes=processes, isa=isa, progress=listener.update
    )
    listener.end(f"2 models at {len(workload.lengths)} lengths, {rounds} rounds in {processes} processes each")
    return old, new


class RecipeFloor(Frozen):
    """What no program on this machine can beat for a recipe's body, and how near its artifact comes.

    Attributes:
        recipe: its name.
        floors_ms: by weight format and token length.
        measured_ms: the newest record's final median by token length; empty without a record of this machine.
        measured: what that was.
    """

    recipe: str
    floors_ms: dict[str, dict[int, float]]
    measured_ms: dict[int, float]
    measured: str

    def table(self) -> Table:
        """One row a weight format, and one for what was measured, as multiples of the int8 floor."""
        lengths = list(next(iter(self.floors_ms.values())))
        rows = [[f"floor {name}", *(f"{floors[length]:.2f}" for length in lengths)] for name, floors in self.floors_ms.items()]
        note = "Floor: the larger of weight bytes / read bandwidth and multiply-adds / GEMM peak, in ms."
        if self.measured_ms:
            rows.append([self.measured, *(f"{self.measured_ms[length]:.2f}" if length in self.measured_ms else "" for length in lengths)])
            multiples = [
                f"{self.measured_ms[length] / self.floors_ms['int8'][length]:.2f}x" if length in self.measured_ms else ""
                for length in lengths
            ]
            rows.append(["the same, over the int8 floor", *multiples])
        else:
            note += " Nothing measured on this machine yet: run optbench apply."
        return Table(f"Floor of {self.recipe}, ms by tokens", ["", *map(str, lengths)], rows, note)


def floors_of_recipes(recipes: Sequence[Recipe], peaks: Peaks, machine: Machine, output: Path) -> list[RecipeFloor]:
    """The floors of recipes on this machine, beside what their newest records measured here."""
    found = []
    for recipe in recipes:
        lengths, batch = sorted(recipe.workload.lengths), recipe.workload.batch
        floors = {
            weights: {length: floor_ms(recipe.base.body, length, batch, peaks, weights).ms for length in lengths}
            for weights in ("fp32", "int8", "int4")
        }
        measured_ms: dict[int, float] = {}
        measured = ""
        folder = output / recipe.name
        if (folder / "records").is_dir():
            record = newest_record(folder)
            if record.machine.fingerprint == machine.fingerprint and record.isa is None and record.final.timing is not None:
                timing = record.timing(record.final.timing)
                measured_ms = {length: timing.median_ms(length) for length in timing.samples_ns}
                measured = f"{record.final.label}, {record.created}"
        found.append(RecipeFloor(recipe=recipe.name, floors_ms=floors, measured_ms=measured_ms, measured=measured))
    return found


def describe_box(name: str, machine: Machine, root: Path = Path("/")) -> Box:
    """This machine as a reference box, without limits: those are for its owner to set.

    Args:
        name: of the box.
        machine: this one.
        root: where `sys` lies.

    Raises:
        MachineError: the name is not safe as a file's, or this machine is a known box already.
    """
    checked, known = box_name(name), matching_box(machine)
    if known is not None:
        raise MachineError(f"box {name}: this machine is box {known.name} already; change that one's file instead")
    governors = read_governors(root)
    return Box(
        name=checked,
        cpu=f"^{re.escape(machine.cpu)}$",
        cores=machine.cores,
        isa=machine.isa,
        # Cores under different governors have none in common.
        governor=next(iter(governors)) if len(governors) == 1 else None,
        turbo=read_turbo(root),
        memory_gb=round(machine.memory_bytes / 2**30),
        system=machine.system,
    )


def machine_table(result: ProbeResult) -> Table:
    """What the machine is and what it reaches."""
    machine, peaks = result.machine, result.peaks
    box = matching_box(machine)
    rows = [
        ["CPU", f"{machine.cpu}, {machine.architecture}"],
        ["instruction set", machine.isa],
        ["VNNI / bf16 / AMX", " / ".join("yes" if has else "no" for has in (machine.has_vnni, machine.has_bf16, machine.has_amx))],
        ["physical cores", str(machine.cores)],
        ["usable threads", str(machine.usable_threads)],
        ["cgroup quota", "none" if machine.cpu_quota is None else f"{machine.cpu_quota:.2f} CPUs"],
        ["memory", f"{machine.memory_bytes / 2**30:.1f} GiB"],
        ["read bandwidth", f"{peaks.read_gb_per_s:.1f} GB/s"],
        *([f"GEMM peak {name}", f"{peak:.2f} TOP/s"] for name, peak in peaks.gemm_tops.items()),
        ["box", box.name if box else "none of those known: ratios judge"],
    ]
    return Table("This machine", ["what", "value"], rows, f"TOP/s: 2 operations a multiply-add; {peaks.threads} threads.")


def measure_artifact_stability(folder: Path, tasks: Sequence[Task], count: int, isas: Sequence[Isa], progress: Progress) -> Stability:
    """How an artifact's vectors of real queries move with batch, padding, company, threads and instruction set.

    Top-10 changes are counted over the documents of the tasks, as the artifact itself embeds them.

    Raises:
        ArtifactError: the folder is not a whole artifact.
        MeasureError: the tasks have too few queries.
    """
    artifact = open_artifact(folder)
    engine = choose_engine(artifact, None, {})
    queries, documents = sample_texts(load_tasks(tasks), 2 * count)
    with load(folder, engine) as encoder:
        vectors = encoder.encode(documents, prompt="document")
    return measure_stability(artifact, engine, queries, documents=vectors, isas=tuple(isas), progress=progress)


def measure_artifact_scenarios(
    folder: Path,
    tasks: Sequence[Task],
    wanted: Scenarios,
    isa: Isa | None,
    progress: Progress,
) -> ScenarioReport:
    """Put an artifact under a service's load, with the tasks' real queries.

    Raises:
        ArtifactError: the folder is not a whole artifact.
        TaskError: the tasks have no queries.
    """
    artifact = open_artifact(folder)
    rows = query_rows(artifact, load_tasks(tasks))
    return run_scenarios(artifact, choose_engine(artifact, None, {}), rows, **dict(wanted), isa=isa, progress=progress)
