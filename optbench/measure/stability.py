"""Stability: whether a text keeps its embedding when only what surrounds it changes.

The reference is each text alone, on the engine's own threads. Against it stand the same texts in another order, padded, in a
batch, beside two sets of other texts, on other numbers of threads, and on smaller instruction sets. An index is built in
batches and queried one text at a time, often on another machine: what moves a vector here moves search results there.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from optbench.artifact.folder import Artifact, Kind
from optbench.engines import Engine
from optbench.errors import BaseModelError, EngineError, MeasureError
from optbench.machine.cpu import Isa, read_machine, usable_threads
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.arrangement import ALONE, Arrangement, serve_arrangements
from optbench.measure.fidelity import Fidelity, measure_fidelity
from optbench.measure.top_changes import TopChanges, compare_tops, top_results
from optbench.model.checkpoint import Description, describe

__all__ = [
    "STABILITY_COLUMNS",
    "Changes",
    "Stability",
    "StabilityRow",
    "measure_stability",
    "stability_rows",
]

Vectors = NDArray[np.float32]
Changes = Literal["order", "padding", "batch", "threads", "isa"]

BATCH = 32
BESIDE = 8
# Two groups of BESIDE by length, and two across lengths: from here on every text gets two different sets of companions.
TEXTS_MIN = 2 * BESIDE
# fp32 kernels that add in another order stay above 0.999999; what falls below four nines is explained.
STEADY = 0.9999

# NodeProto.op_type is field 4, a string (onnx.proto): tag 0x22, length, name. Both operators have names of 21 letters.
_ONE_SCALE_OPERATORS = (b"\x22\x15DynamicQuantizeLinear", b"\x22\x15DynamicQuantizeMatMul")
# Sets whose int8 products are added in pairs at 16 bits (oneDNN, "Int8 computations": vpmaddubsw).
_WITHOUT_VNNI: frozenset[Isa] = frozenset({"sse4_1", "avx2", "avx512_core"})

ONE_SCALE = (
    "dynamic int8 gives each activation tensor one scale for the whole batch, padding included, so a text's numbers follow its "
    "neighbors': use static int8 (quantize_static), or run this model at batch 1 without padding"
)
SATURATION = (
    "a CPU without VNNI adds the int8 products of unsigned activations and signed weights in pairs at 16 bits, which can saturate: "
    "there reduce the weights' range to 7 bits or use uint8 weights, and do not share vectors with CPUs that have VNNI"
)
LOW_PRECISION = (
    "{precision} keeps 2 to 3 digits of each result, and other shapes, threads and kernels add in another order: set "
    "inference_precision to f32 where vectors must be alike"
)
NEXT_STEP = (
    "another shape (each static length is a graph of its own), number of threads or instruction set runs other kernels, whose sums "
    "differ in the last bit; where activations are rounded to int8 that bit can move a value by a whole step: keep more layers in "
    "float, or hold fixed what moved it"
)
BROKEN = "the model gave NaN, infinity or zero: leave out the step that made it, or report the engine's fault"


class StabilityRow(Frozen):
    """One condition.

    Attributes:
        condition: `batch of 32, mixed lengths`, `1 thread`, `as avx2`.
        changes: what differs from the reference.
        fidelity: cosines to the reference; None where the condition was left out.
        worst_text: the text that moved most.
        top: changes among the nearest documents; None without documents.
        explanation: the likely cause and its cure, where the worst cosine is below 0.9999; else empty.
        left_out: why this condition was not measured; empty where it was.
    """

    condition: str
    changes: Changes
    fidelity: Fidelity | None = None
    worst_text: str = ""
    top: TopChanges | None = None
    explanation: str = ""
    left_out: str = ""


class Stability(Frozen):
    """How far each condition moves the embeddings of the same texts.

    Attributes:
        sha256: the artifact's.
        engine: the engine's options as JSON.
        reference: what all rows are compared with, in words.
        n_texts: texts behind every row.
        n_documents: documents that they were ranked against; 0 for none.
        rows: one for each condition, in a fixed order.
    """

    sha256: str
    engine: dict[str, JsonValue]
    reference: str
    n_texts: int
    n_documents: int
    rows: tuple[StabilityRow, ...]

    def below(self, floor: float) -> tuple[StabilityRow, ...]:
        """The conditions whose worst cosine is below `floor`; one that was left out is not among them."""
        return tuple(row for row in self.rows if row.fidelity is not None and row.fidelity.minimum < floor)

    def worst(self, changes: Changes) -> StabilityRow | None:
        """The condition of that kind in which a text moved most; None where none was measured."""
        rows = [(row.fidelity.minimum, row) for row in self.rows if row.changes == changes and row.fidelity is not None]
        return min(rows, key=lambda pair: pair[0], default=(1.0, None))[1]

    @property
    def explanations(self) -> tuple[str, ...]:
        """Each cause that some condition met, once."""
        return tuple(dict.fromkeys(row.explanation for row in self.rows if row.explanation))


STABILITY_COLUMNS = ("condition", "worst cosine", "mean cosine", "other top 10", "other order", "worst text, or why left out")
TEXT_SHOWN = 60


def stability_rows(stability: Stability) -> list[list[str]]:
    """A line of plain strings for each condition, under `STABILITY_COLUMNS`."""
    lines = []
    for row in stability.rows:
        if row.fidelity is None:
            lines.append([row.condition, "left out", "", "", "", row.left_out])
            continue
        tops = ["", ""] if row.top is None else [str(row.top.other_documents), str(row.top.other_order)]
        worst, mean = (f"{cosine:.7f}" for cosine in (row.fidelity.minimum, row.fidelity.mean))
        shown = row.worst_text if len(row.worst_text) <= TEXT_SHOWN else row.worst_text[: TEXT_SHOWN - 1] + "…"
        # Where no text moved, the worst of them is chance.
        lines.append([row.condition, worst, mean, *tops, "" if worst == "1.0000000" else shown])
    return lines


@dataclass(frozen=True)
class _Condition:
    """A row to be: its name, what it changes, and either how to run it or why not."""

    name: str
    changes: Changes
    arrangement: Arrangement = ALONE
    engine: Engine | None = None
    isa: Isa | None = None
    left_out: str = ""


def measure_stability(
    artifact: Artifact,
    engine: Engine,
    texts: Sequence[str],
    *,
    documents: Vectors | None = None,
    prompt: str | None = "query",
    isa: Isa | None = None,
    isas: Sequence[Isa] = (),
    threads: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Stability:
    """Embed the same texts under every condition, and compare each with the texts alone.

    Args:
        artifact: what embeds.
        engine: what runs it; its threads are the reference's.
        texts: at least 16 real texts of mixed lengths, without prompts.
        documents: (documents, dimension), rows of length 1, made once by whichever model built the index; the nearest ten to
            each text are then compared too.
        prompt: the name of the prompt to put in front of each text; None puts nothing.
        isa: run the reference, and all but the rows of `isas`, as a CPU with this instruction set would.
        isas: other instruction sets to compare with.
        threads: numbers of threads to compare with; left out: 1, and all that this process may use.
        progress: called with a phrase and the share done.

    Raises:
        EngineError: the engine cannot open the artifact, or cannot be held to `isa`. What it refuses under a single condition
            becomes that row's reason to be left out.
        MachineError: a process was killed, usually for want of memory.
        MeasureError: too few texts, documents of another dimension, or a reference that is itself broken.
    """
    if len(texts) < TEXTS_MIN:
        raise MeasureError(
            f"stability: {len(texts)} texts; at least {TEXTS_MIN} are wanted, so that each stands beside two different sets of others"
        )
    if threads is not None and min(threads, default=1) < 1:
        raise MeasureError(f"stability: {min(threads)} threads; numbers of at least 1 are wanted")
    try:
        description = describe(artifact.path)
    except BaseModelError as error:
        raise MeasureError(f"{artifact.path}: its stability cannot be measured: {error}") from error
    own_threads = engine.threads or usable_threads()
    inside = _arrangement_conditions(description, len(texts))
    apart = [*_thread_conditions(engine, own_threads, threads, isa), *_isa_conditions(engine, isas, isa)]
    payload = {"path": str(artifact.path), "texts": list(texts), "prompt": prompt, "pad_id": description.body.pad_id}
    gauge = _Gauge(payload, documents, 1 + len(inside) + len(apart), progress)
    with gauge.open(engine, isa) as worker:
        gauge.embed_reference(worker)
        gauge.one_scale, gauge.precision = _has_one_scale(artifact), engine.precision
        rows = [gauge.measure(condition, worker) for condition in inside]
    for condition in apart:
        if condition.engine is None:
            rows.append(gauge.leave_out(condition, condition.left_out))
            continue
        try:
            with gauge.open(condition.engine, condition.isa) as worker:
                rows.append(gauge.measure(condition, worker))
        except EngineError as error:  # more threads than OpenVINO grants, say
            rows.append(gauge.leave_out(condition, str(error)))
    return Stability(
        sha256=artifact.sha256,
        engine=engine.model_dump(mode="json"),
        reference=f"each text alone, {_count_threads(own_threads)}" + (f", as {isa}" if isa else ""),
        n_texts=len(texts),
        n_documents=0 if documents is None else len(documents),
        rows=tuple(rows),
    )


def _arrangement_conditions(description: Description, n_texts: int) -> list[_Condition]:
    batch = min(BATCH, n_texts)
    # Only a body that counts positions past padding gives a text the same positions behind it, and only a mean finds its tokens there.
    left_out = ""
    if description.body.architecture == "BertModel":
        left_out = "BertModel counts positions from the first column, so padding on the left moves every token: pad on the right"
    elif description.pooling == "cls":
        left_out = "the embedding is that of the first column, which padding on the left takes: pad on the right"
    return [
        _Condition("again, in reverse order", "order", Arrangement(order="reversed")),
        _Condition("padded on the right", "padding", Arrangement(padding="right")),
        _Condition("padded on the left", "padding", Arrangement(padding="left"), left_out=left_out),
        _Condition(f"batch of {batch}, mixed lengths", "batch", Arrangement(order="mixed", size=batch)),
        _Condition(f"beside {BESIDE - 1} of like length", "batch", Arrangement(order="like", size=BESIDE)),
        _Condition(f"beside {BESIDE - 1} of other lengths", "batch", Arrangement(order="mixed", size=BESIDE)),
    ]


def _thread_conditions(engine: Engine, own: int, threads: Sequence[int] | None, isa: Isa | None) -> list[_Condition]:
    wanted = list(dict.fromkeys((1, usable_threads()) if threads is None else threads))
    if threads is None and wanted != [own]:
        wanted = [count for count in wanted if count != own]
    return [
        _Condition(_count_threads(count), "threads", left_out=f"the reference runs on {_count_threads(own)}")
        if count == own
        else _Condition(_count_threads(count), "threads", engine=engine.model_copy(update={"threads": count}), isa=isa)
        for count in wanted
    ]


def _isa_conditions(engine: Engine, isas: Sequence[Isa], own: Isa | None) -> list[_Condition]:
    conditions = []
    for isa in dict.fromkeys(isas):
        name, left_out = f"as {isa}", ""
        if isa == (own or read_machine().isa):
            left_out = "the reference runs as it"
        else:
            try:
                engine.environment(isa)
            except EngineError as error:
                left_out = str(error)
        conditions.append(_Condition(name, "isa", engine=None if left_out else engine, isa=isa, left_out=left_out))
    return conditions


def _count_threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


class _Gauge:
    """Runs conditions in worker processes and compares what they give with the reference."""

    def __init__(self, payload: Mapping[str, Any], documents: Vectors | None, passes: int, progress: Progress) -> None:
        self.one_scale, self.precision = False, "fp32"
        self._payload, self._documents, self._passes, self._progress = payload, documents, passes, progress
        self._done = 0

    def open(self, engine: Engine, isa: Isa | None) -> Worker:
        """A process of its own for an engine."""
        payload = {**self._payload, "engine": engine.model_dump(mode="json")}
        return Worker(serve_arrangements, payload, engine.environment(isa) if isa else None)

    def embed_reference(self, worker: Worker) -> None:
        """Embed each text alone; everything else is compared with that."""
        self._reference = np.array(self._request(worker, "reference", ALONE)["vectors"], dtype=np.float32)
        if self._documents is not None:
            dimension = self._reference.shape[1]
            if self._documents.shape[1:] != (dimension,):
                raise MeasureError(
                    f"stability: document vectors have shape {self._documents.shape}, (documents, {dimension}) wanted; "
                    "embed the documents with a model of the same dimension"
                )
            self._top = top_results(self._reference, self._documents)

    def measure(self, condition: _Condition, worker: Worker) -> StabilityRow:
        """Embed the texts under a condition, and compare."""
        if condition.left_out:
            return self.leave_out(condition, condition.left_out)
        answer = self._request(worker, condition.name, condition.arrangement)
        if "left_out" in answer:
            return StabilityRow(condition=condition.name, changes=condition.changes, left_out=answer["left_out"])
        vectors = np.array(answer["vectors"], dtype=np.float32)
        fidelity = measure_fidelity(self._reference, vectors)
        return StabilityRow(
            condition=condition.name,
            changes=condition.changes,
            fidelity=fidelity,
            worst_text=self._payload["texts"][fidelity.worst],
            top=None if self._documents is None else compare_tops(self._top, top_results(vectors, self._documents)),
            explanation=self._explain(condition, fidelity),
        )

    def leave_out(self, condition: _Condition, reason: str) -> StabilityRow:
        """A row that says why there is nothing in it."""
        self._done += 1
        # An engine's own words may run over lines; a row is one.
        return StabilityRow(condition=condition.name, changes=condition.changes, left_out=" ".join(reason.split()))

    def _request(self, worker: Worker, name: str, arrangement: Arrangement) -> Any:
        def report_progress(message: str, share: float | None) -> None:
            self._progress(f"stability: {name}", (self._done + (share or 0.0)) / self._passes)

        answer = worker.request(arrangement.model_dump(), report_progress)
        self._done += 1
        return answer

    def _explain(self, condition: _Condition, fidelity: Fidelity) -> str:
        if fidelity.n_broken:
            return BROKEN
        if fidelity.minimum >= STEADY:
            return ""
        if condition.isa in _WITHOUT_VNNI and condition.changes == "isa":
            return SATURATION
        if self.one_scale and condition.changes in ("batch", "padding"):
            return ONE_SCALE
        return NEXT_STEP if self.precision == "fp32" else LOW_PRECISION.format(precision=self.precision)


def _has_one_scale(artifact: Artifact) -> bool:
    """Whether an ONNX graph quantizes activations at run time with one scale for a whole tensor."""
    if artifact.kind is not Kind.ONNX:
        return False
    # Looked for in the bytes: reading the graph with a library would bring inline weights of gigabytes into memory.
    with artifact.main_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return any(graph.find(operator) >= 0 for operator in _ONE_SCALE_OPERATORS)
