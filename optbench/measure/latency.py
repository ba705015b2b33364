"""Latency, measured so that two figures of one run can be compared.

Each model is opened in a fresh process of its own, and some times anew in the course of the run. The parent goes round: in
every round each process in turn times a short block at each token length, while all others wait, blocked on a pipe. So a slow
second on a shared machine falls on every model alike, and the ratio of two models is taken round by round. Raw nanoseconds are kept.
"""

import gc
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, TypeAdapter

from optbench.artifact.folder import Artifact, Kind
from optbench.engines import Engine
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.footprint import MemorySample, read_memory
from optbench.measure.statistics import Interval, process_rounds, ratio_interval, typical_interval
from optbench.model.checkpoint import read_body

__all__ = [
    "Cell",
    "RoundTimes",
    "ServingTimes",
    "Timing",
    "answer_rounds",
    "measure_latency",
    "measure_serving",
    "price_folders",
    "random_inputs",
    "time_in_rounds",
]

logger = logging.getLogger(__name__)

# A block is long enough for the clock and the scheduler not to matter, and short enough that a round stays a round.
BLOCK_NS = 40_000_000
BLOCK_RUNS_MAX = 20
# Warm-up ends when this many runs in a row agree to within the share.
STABLE_RUNS = 4
STABLE_SHARE = 0.05
WARM_RUNS_MAX = 40
WARM_SECONDS_MAX = 4.0
# Thread pools go on spinning for some milliseconds after a run; the next process is not timed before they sleep.
SETTLE_SECONDS = 0.03
# Where a process's memory happens to lie can make it slower for its whole life: all-MiniLM-L6-v2 at 8 tokens took 0.45 ms in one and
# 0.68 ms in another, in every round. So each model is opened anew some times within a run, and the interval holds that too.
PROCESSES = 6
# A second run of a length finds its arena grown and its kernels chosen; how long the first process took to settle is on record.
WARM_RUNS_AGAIN = 2
# Distinct inputs, so that no run finds exactly the last one's rows in the cache.
DISTINCT_INPUTS = 8
SERVING_REPEATS = 5


class Cell(Frozen):
    """One model in one engine: a column of the latency table."""

    label: str
    kind: Kind
    path: Path
    sha256: str
    engine: Engine


class RoundTimes(Frozen):
    """What was measured of one model.

    Attributes:
        load_ms: opening the model, files in the page cache or not as it happened to be.
        memory: of its process at the end, all lengths having run.
        warm_runs: untimed runs before the clock started, by length.
        unstable: lengths at which warm-up ended without the runs agreeing.
        samples_ns: by length, one tuple a round, raw nanoseconds of each run.
        processes: how many processes it was opened in, one after the other; the rounds are shared out among them.
    """

    load_ms: float
    memory: MemorySample
    warm_runs: dict[int, int]
    unstable: tuple[int, ...]
    samples_ns: dict[int, tuple[tuple[int, ...], ...]]
    processes: int = 1

    def median_ms(self, length: int) -> float:
        """The typical latency in milliseconds: `typical_ms`, or the median over all runs where there was one process."""
        if self.processes > 1:
            return self.typical_ms(length).point
        return float(np.median([ns for block in self.samples_ns[length] for ns in block])) / 1e6

    def typical_ms(self, length: int) -> Interval:
        """The typical latency in milliseconds with its 95 % interval over the processes."""
        return typical_interval([np.array(block) / 1e6 for block in self.samples_ns[length]], processes=self.processes)

    def times_as_fast_as(self, other: "RoundTimes", length: int) -> Interval:
        """By how many times this one was faster than another of the same run, with its 95 % interval over the processes."""
        return ratio_interval(other.samples_ns[length], self.samples_ns[length], processes=min(self.processes, other.processes))


class Timing(RoundTimes):
    """What was measured of one cell.

    Attributes:
        label: the cell's.
        sha256: the artifact's.
        engine: the engine's options as JSON.
    """

    label: str
    sha256: str
    engine: dict[str, JsonValue]


class ServingTimes(Frozen):
    """One text after another through the encoder, as a service sends them; the median of a few repeats in nanoseconds, one entry a text."""

    tokens: tuple[int, ...]
    tokenize_ns: tuple[int, ...]
    embed_ns: tuple[int, ...]
    encode_ns: tuple[int, ...]


def random_inputs(lengths: Sequence[int], batch: int, vocabulary: int) -> dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """Seeded random ids by length, with their masks; what they are does not change the arithmetic."""
    low = min(5, vocabulary - 1)
    found = {}
    for length in lengths:
        generator = np.random.default_rng(length)
        mask = np.ones((batch, length), dtype=np.int64)
        found[length] = [(generator.integers(low, vocabulary, (batch, length), dtype=np.int64), mask) for _ in range(DISTINCT_INPUTS)]
    return found


def warm_until_stable(run: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> tuple[list[int], bool]:
    """Run until the last runs agree, or a bound is reached.

    Args:
        run: does one run, returns its nanoseconds.
        clock: seconds.

    Returns:
        the runs' nanoseconds, and whether the last ones agreed.
    """
    taken: list[int] = []
    start = clock()
    while len(taken) < WARM_RUNS_MAX:
        taken.append(run())
        recent = taken[-STABLE_RUNS:]
        # The first run of each shape grows the arena: it never counts as one that agrees.
        if len(taken) > STABLE_RUNS and max(recent) <= min(recent) * (1 + STABLE_SHARE):
            return taken, True
        if clock() - start > WARM_SECONDS_MAX and len(taken) >= 2:
            break
    return taken, False


def _warm(run: Callable[[], int], runs: int | None) -> dict[str, Any]:
    """A number of runs, or until they agree."""
    if runs is not None:
        return {"runs_ns": [run() for _ in range(runs)], "stable": True}
    taken, stable = warm_until_stable(run)
    return {"runs_ns": taken, "stable": stable}


def serve_session(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The child's side of a cell: open once, then answer what `time_in_rounds` asks."""
    cell = Cell.model_validate(payload["cell"])
    start = time.perf_counter_ns()
    session = cell.engine.open(Artifact(cell.kind, cell.path, cell.sha256))
    load_ms = (time.perf_counter_ns() - start) / 1e6
    inputs = random_inputs(payload["lengths"], int(payload["batch"]), read_body(cell.path).vocabulary)
    yield from answer_rounds(lambda each: session.embed(*each), inputs, load_ms)


def answer_rounds(
    embed: Callable[[Any], object], inputs: Mapping[int, Sequence[Any]], load_ms: float
) -> Generator[Any, dict[str, Any], None]:
    """The child's side of any model that `time_in_rounds` times, from the moment that it is open.

    Args:
        embed: what is timed.
        inputs: by length, what `embed` is given in turn.
        load_ms: what opening took.
    """
    turn = 0

    def run(length: int) -> int:
        nonlocal turn
        turn += 1
        each = inputs[length][turn % len(inputs[length])]
        begin = time.perf_counter_ns()
        embed(each)
        return time.perf_counter_ns() - begin

    answer: Any = None
    while True:
        request = yield answer
        gc.disable()
        match request["do"]:
            case "warm":
                answer = {"load_ms": load_ms, **_warm(partial(run, request["length"]), request["runs"])}
            case "block":
                # One run untimed: it brings this process's code and weights back after the others had the cores.
                run(min(inputs))
                answer = {str(length): [run(length) for _ in range(runs)] for length, runs in request["runs"]}
            case "memory":
                answer = read_memory().model_dump()
        gc.enable()


def measure_latency(
    cells: Sequence[Cell],
    lengths: Sequence[int],
    *,
    batch: int = 1,
    rounds: int = 15,
    processes: int = PROCESSES,
    isa: Isa | None = None,
    progress: Progress = silent,
) -> tuple[Timing, ...]:
    """Time the cells against each other.

    Args:
        cells: what to time; all are open at once, each in its own process.
        lengths: tokens of the input.
        batch: rows of the input.
        rounds: how often each cell is timed; one block a length and round.
        processes: how many processes each cell has one after the other; the rounds are shared out among them.
        isa: run as a CPU with this instruction set would.
        progress: called with a phrase and the share done.

    Raises:
        EngineError: an engine cannot open its artifact, or cannot be held to `isa`.
        MachineError: a process was killed, usually for want of memory.
    """
    lengths = sorted(lengths)

    def start(cell: Cell) -> Worker:
        payload = {"cell": cell.model_dump(mode="json"), "lengths": lengths, "batch": batch}
        return Worker(serve_session, payload, cell.engine.environment(isa) if isa else None)

    models = [(cell.label, partial(start, cell)) for cell in cells]
    timed = time_in_rounds(models, lengths, rounds=rounds, processes=processes, progress=progress)
    return tuple(
        Timing(label=cell.label, sha256=cell.sha256, engine=cell.engine.model_dump(mode="json"), **dict(times))
        for cell, times in zip(cells, timed, strict=True)
    )


def time_in_rounds(
    models: Sequence[tuple[str, Callable[[], Worker]]],
    lengths: Sequence[int],
    *,
    rounds: int,
    processes: int = PROCESSES,
    progress: Progress = silent,
) -> tuple[RoundTimes, ...]:
    """Time models of any kind against each other.

    Args:
        models: each one's label, and what starts a process whose function ends in `answer_rounds`.
        lengths: of the input, sorted.
        rounds: how often each model is timed; one block a length and round.
        processes: how many processes each model has one after the other; the rounds are shared out among them.
        progress: called with a phrase and the share done.
    """
    plans: dict[int, list[tuple[int, int]]] = {}
    first: dict[int, dict[int, Any]] = {}
    samples: list[dict[int, list[tuple[int, ...]]]] = [{length: [] for length in lengths} for _ in models]
    memory: list[MemorySample] = []
    turns = process_rounds(rounds, processes)
    for process, its_turns in enumerate(turns):
        share = process / len(turns)
        with ExitStack() as stack:
            workers: dict[int, Worker] = {}
            warm: dict[int, dict[int, Any]] = {}
            # The one that is opened first, while memory is still being freed, may be the slower for it: each is that in its turn.
            for position in range(len(models)):
                index = (position + process) % len(models)
                label, start = models[index]
                progress(f"opening {label}", share + 0.3 * position / len(models) / len(turns))
                worker = workers[index] = stack.enter_context(start())
                runs = WARM_RUNS_AGAIN if process else None
                warm[index] = {length: worker.request({"do": "warm", "length": length, "runs": runs}) for length in lengths}
            first = first or warm
            # How many runs fill a block is settled once, from the first warm-up, so that every round has the same weight.
            plans = plans or {
                index: [(length, _block_runs(answer[length]["runs_ns"])) for length in lengths] for index, answer in warm.items()
            }
            for turn in its_turns:
                progress(f"timing, round {turn + 1} of {rounds}", max(share, turn / rounds))
                # The order moves on by one a round: no model always follows the same neighbor.
                for index in ((position + turn) % len(models) for position in range(len(models))):
                    time.sleep(SETTLE_SECONDS)
                    answer = workers[index].request({"do": "block", "runs": plans[index]})
                    for length in lengths:
                        samples[index][length].append(tuple(answer[str(length)]))
            memory = [MemorySample.model_validate(worker.request({"do": "memory"})) for _, worker in sorted(workers.items())]
    return tuple(
        RoundTimes(
            load_ms=first[index][lengths[0]]["load_ms"],
            memory=memory[index],
            warm_runs={length: len(first[index][length]["runs_ns"]) for length in lengths},
            unstable=tuple(length for length in lengths if not first[index][length]["stable"]),
            samples_ns={length: tuple(blocks) for length, blocks in samples[index].items()},
            processes=len(turns),
        )
        for index in range(len(models))
    )


def _block_runs(warm_ns: Sequence[int]) -> int:
    typical = median(warm_ns[-STABLE_RUNS:])
    return max(1, min(BLOCK_RUNS_MAX, round(BLOCK_NS / max(typical, 1))))


def price_folders(kind: Kind, folders: Sequence[Path], engine: Engine, lengths: Sequence[int], rounds: int) -> list[Mapping[int, float]]:
    """Latency in milliseconds by length of unsealed candidate folders, timed in alternation.

    The first folder's is its median; each other's is that times the median of its round-by-round ratios to the first, which
    stays put when the whole machine slows down for a while.
    """
    cells = [Cell(label=folder.name, kind=kind, path=folder, sha256="unsealed", engine=engine) for folder in folders]
    timings = measure_latency(cells, lengths, rounds=rounds, processes=1)
    first = timings[0]
    return [{length: first.median_ms(length) / timing.times_as_fast_as(first, length).point for length in lengths} for timing in timings]


def serve_encoder(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The child's side of `measure_serving`."""
    from optbench.encoder import load

    yield
    engine: Engine = TypeAdapter(Engine).validate_python(payload["engine"])
    encoder = load(Path(payload["path"]), engine=engine)
    prompt, texts = payload["prompt"], payload["texts"]
    for text in texts[:DISTINCT_INPUTS]:
        encoder.encode(text, prompt=prompt)
    rows = []
    for text in texts:
        samples = []
        # The three are timed in turn and each gives its median: a service has seen every length before.
        for _ in range(SERVING_REPEATS):
            marks = [time.perf_counter_ns()]
            input_ids, attention_mask = encoder.tokenize([text], prompt=prompt)
            marks.append(time.perf_counter_ns())
            encoder.embed(input_ids, attention_mask)
            marks.append(time.perf_counter_ns())
            encoder.encode(text, prompt=prompt)
            marks.append(time.perf_counter_ns())
            samples.append(np.diff(marks))
        rows.append((input_ids.shape[1], *np.median(samples, axis=0).astype(int).tolist()))
    tokens, tokenize, embed, encode = zip(*rows, strict=True)
    yield {"tokens": tokens, "tokenize_ns": tokenize, "embed_ns": embed, "encode_ns": encode}


def measure_serving(artifact: Artifact, engine: Engine, texts: Sequence[str], prompt: str | None, isa: Isa | None = None) -> ServingTimes:
    """Time tokenization, inference and both together on real texts, one at a time, in a fresh process."""
    payload = {"path": str(artifact.path), "engine": engine.model_dump(mode="json"), "prompt": prompt, "texts": list(texts)}
    with Worker(serve_encoder, payload, engine.environment(isa) if isa else None) as worker:
        return ServingTimes.model_validate(worker.request({}))
