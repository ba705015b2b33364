"""Latency in interleaved rounds, so that the models of one run can be compared.

Each model runs in its own process, restarted several times during a run. In every round, each process in turn times a short block
of runs at each token length while the others wait, blocked on a pipe. A slow second on a shared machine then affects every model,
and ratios of two models are computed round by round. Raw nanoseconds are kept.
"""

import gc
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines import Engine
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.footprint import MemorySample, read_memory
from optbench.measure.statistics import Interval, process_rounds, ratio_interval, typical_interval
from optbench.measure.subject import Subject
from optbench.model.checkpoint import read_body

__all__ = [
    "RoundTimes",
    "ServingTimes",
    "Timing",
    "answer_rounds",
    "measure_latency",
    "measure_serving",
    "random_inputs",
    "time_candidates",
    "time_in_rounds",
]

# Long enough to average out the clock and the scheduler, short enough to keep a round short.
BLOCK_NS = 40_000_000
BLOCK_RUNS_MAX = 20
# Warm-up ends when this many consecutive runs agree to within this share.
STABLE_RUNS = 4
STABLE_SHARE = 0.05
WARM_RUNS_MAX = 40
WARM_SECONDS_MAX = 4.0
# Thread pools keep spinning for some milliseconds after a run; wait before timing the next process.
SETTLE_SECONDS = 0.03
# Memory layout can make a process slower for its whole life: all-MiniLM-L6-v2 at 8 tokens took 0.45 ms in one process and
# 0.68 ms in another, in every round. Several processes per model put that variance into the interval.
PROCESSES = 6
# Later processes need no full warm-up: after one run of a length, the arena has grown and the kernels are chosen.
WARM_RUNS_AGAIN = 2
# Distinct inputs, so that no run finds the previous one's embedding rows in the cache.
DISTINCT_INPUTS = 8
SERVING_REPEATS = 5


class RoundTimes(Frozen):
    """Latency and memory of one model.

    Attributes:
        load_ms: time to open the model, whatever the state of the page cache.
        memory: of its process after all lengths have run.
        warm_runs: untimed runs before the clock started, by length.
        unstable: lengths whose warm-up ended before consecutive runs agreed.
        samples_ns: by length, one tuple per round, raw nanoseconds of each run.
        processes: how many processes ran it, one after the other; the rounds are divided among them.
    """

    load_ms: float
    memory: MemorySample
    warm_runs: dict[int, int]
    unstable: tuple[int, ...]
    samples_ns: dict[int, tuple[tuple[int, ...], ...]]
    processes: int = 1

    def median_ms(self, length: int) -> float:
        """The typical latency in milliseconds: `typical_ms`, or with one process the median over all runs."""
        if self.processes > 1:
            return self.typical_ms(length).point
        return float(np.median([ns for block in self.samples_ns[length] for ns in block])) / 1e6

    def typical_ms(self, length: int) -> Interval:
        """The typical latency in milliseconds with its 95 % interval over the processes."""
        return typical_interval([np.array(block) / 1e6 for block in self.samples_ns[length]], processes=self.processes)

    def times_as_fast_as(self, other: "RoundTimes", length: int) -> Interval:
        """The speed-up over another model of the same run, with its 95 % interval over the processes."""
        return ratio_interval(other.samples_ns[length], self.samples_ns[length], processes=min(self.processes, other.processes))


class Timing(RoundTimes):
    """Latency and memory of one subject."""

    label: str
    sha256: str
    engine: dict[str, JsonValue]


class ServingTimes(Frozen):
    """Texts encoded one at a time, as in a service: one entry per text, the median of a few repeats."""

    tokens: tuple[int, ...]
    tokenize_ns: tuple[int, ...]
    embed_ns: tuple[int, ...]
    encode_ns: tuple[int, ...]


def random_inputs(lengths: Sequence[int], batch: int, vocabulary: int) -> dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """Seeded random token ids by length, with their masks; latency does not depend on the ids."""
    low = min(5, vocabulary - 1)
    found = {}
    for length in lengths:
        generator = np.random.default_rng(length)
        mask = np.ones((batch, length), dtype=np.int64)
        found[length] = [(generator.integers(low, vocabulary, (batch, length), dtype=np.int64), mask) for _ in range(DISTINCT_INPUTS)]
    return found


def warm_until_stable(run: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> tuple[list[int], bool]:
    """Run until the last runs agree, or a limit is reached; `run` returns nanoseconds, `clock` seconds.

    Returns:
        The nanoseconds of each run, and whether the last ones agreed.
    """
    taken: list[int] = []
    start = clock()
    while len(taken) < WARM_RUNS_MAX:
        taken.append(run())
        recent = taken[-STABLE_RUNS:]
        # The first run of each shape grows the arena: it never counts.
        if len(taken) > STABLE_RUNS and max(recent) <= min(recent) * (1 + STABLE_SHARE):
            return taken, True
        if clock() - start > WARM_SECONDS_MAX and len(taken) >= 2:
            break
    return taken, False


def _warm(run: Callable[[], int], runs: int | None) -> dict[str, Any]:
    """Do a number of runs, or run until they agree."""
    if runs is not None:
        return {"runs_ns": [run() for _ in range(runs)], "stable": True}
    taken, stable = warm_until_stable(run)
    return {"runs_ns": taken, "stable": stable}


def serve_session(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Worker process of one subject: open it once, then answer the requests of `time_in_rounds`."""
    subject = Subject.received(payload)
    start = time.perf_counter_ns()
    session = subject.open()
    load_ms = (time.perf_counter_ns() - start) / 1e6
    inputs = random_inputs(payload["lengths"], int(payload["batch"]), read_body(subject.artifact.path).vocabulary)
    yield from answer_rounds(lambda each: session.embed(*each), inputs, load_ms)


def answer_rounds(
    embed: Callable[[Any], object], inputs: Mapping[int, Sequence[Any]], load_ms: float
) -> Generator[Any, dict[str, Any], None]:
    """Answer the requests of `time_in_rounds` in the worker process of an open model.

    `embed` is timed on the inputs of each length in turn.
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
                # One untimed run brings this process's code and weights back into the caches.
                run(min(inputs))
                answer = {str(length): [run(length) for _ in range(runs)] for length, runs in request["runs"]}
            case "memory":
                answer = read_memory().model_dump()
        gc.enable()


def measure_latency(
    subjects: Sequence[Subject],
    lengths: Sequence[int],
    *,
    batch: int = 1,
    rounds: int = 15,
    processes: int = PROCESSES,
    progress: Progress = silent,
) -> tuple[Timing, ...]:
    """Time subjects in interleaved rounds.

    All subjects are open at once, each in its own process. A round times one block per subject and length in tokens. Each subject gets
    `processes` fresh processes, one after the other, among which the rounds are divided.

    Raises:
        EngineError: an engine cannot open its artifact, or cannot be limited to the subject's instruction set.
        MachineError: a process was killed, usually for lack of memory.
    """
    lengths = sorted(lengths)
    payload = {"lengths": lengths, "batch": batch}
    models = [(subject.label, partial(subject.start, serve_session, payload)) for subject in subjects]
    timed = time_in_rounds(models, lengths, rounds=rounds, processes=processes, progress=progress)
    return tuple(
        Timing(label=subject.label, sha256=subject.artifact.sha256, engine=subject.engine_options, **dict(times))
        for subject, times in zip(subjects, timed, strict=True)
    )


def time_in_rounds(
    models: Sequence[tuple[str, Callable[[], Worker]]],
    lengths: Sequence[int],
    *,
    rounds: int,
    processes: int = PROCESSES,
    progress: Progress = silent,
) -> tuple[RoundTimes, ...]:
    """Time models of any kind as `measure_latency` times subjects.

    Each model is a label and a function that starts a worker process, which yields from `answer_rounds`. `lengths` are sorted.
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
            # The first one opened, while memory is still being freed, may be slower: each model is first in turn.
            for position in range(len(models)):
                index = (position + process) % len(models)
                label, start = models[index]
                progress(f"opening {label}", share + 0.3 * position / len(models) / len(turns))
                worker = workers[index] = stack.enter_context(start())
                runs = WARM_RUNS_AGAIN if process else None
                warm[index] = {length: worker.request({"do": "warm", "length": length, "runs": runs}) for length in lengths}
            first = first or warm
            # The first warm-up sets the number of runs per block, so that every round has the same weight.
            plans = plans or {
                index: [(length, _block_runs(answer[length]["runs_ns"])) for length in lengths] for index, answer in warm.items()
            }
            for turn in its_turns:
                progress(f"timing, round {turn + 1} of {rounds}", max(share, turn / rounds))
                # The order rotates by one per round, so that no model always follows the same one.
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


def time_candidates(
    kind: Kind, folders: Sequence[Path], engine: Engine, lengths: Sequence[int], *, rounds: int, isa: Isa | None = None
) -> list[Mapping[int, float]]:
    """Latency in milliseconds by length of unsealed candidate folders, timed in interleaved rounds.

    The first folder's latency is its median. Each other's is that times the median of its round-by-round ratios to the first, which
    does not change when the whole machine slows down for a while.
    """
    subjects = [Subject(Artifact(kind, folder, "unsealed"), engine, isa, folder.name) for folder in folders]
    timings = measure_latency(subjects, lengths, rounds=rounds, processes=1)
    first = timings[0]
    return [{length: first.median_ms(length) / timing.times_as_fast_as(first, length).point for length in lengths} for timing in timings]


def serve_encoder(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Worker process of `measure_serving`."""
    from optbench.encoder import load

    yield
    subject = Subject.received(payload)
    encoder = load(subject.artifact.path, engine=subject.engine)
    prompt, texts = payload["prompt"], payload["texts"]
    for text in texts[:DISTINCT_INPUTS]:
        encoder.encode(text, prompt=prompt)
    rows = []
    for text in texts:
        samples = []
        # Medians of repeats: a running service has seen every length before.
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


def measure_serving(subject: Subject, texts: Sequence[str], prompt: str | None) -> ServingTimes:
    """Time tokenization, inference and both together on real texts, one at a time, in a fresh process."""
    with subject.start(serve_encoder, {"prompt": prompt, "texts": list(texts)}) as worker:
        return ServingTimes.model_validate(worker.request({}))
