"""Stability: whether a text keeps its embedding when only its batch, padding, threads or CPU change.

The reference is each text alone and without padding, from the graph compiled for any shape (`engines.contract`), on the engine's own
threads. It is compared with the same texts on static lengths, in another order, padded, in batches of other texts, with other numbers
of threads, and on smaller instruction sets. An index is built in batches and queried one
text at a time, often on another machine: whatever moves a vector moves search results.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import BaseModelError, EngineError, MeasureError
from optbench.machine.cpu import Isa, read_machine, usable_threads
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.arrangement import ALONE, Arrangement, serve_arrangements
from optbench.measure.fidelity import Fidelity, measure_fidelity
from optbench.measure.subject import Subject
from optbench.measure.top_changes import TopChanges, compare_tops, top_results
from optbench.model.checkpoint import Description, describe
from optbench.recipe.schema import ConditionKind

__all__ = [
    "STABILITY_COLUMNS",
    "Stability",
    "StabilityRow",
    "measure_stability",
    "stability_rows",
]

Vectors = NDArray[np.float32]

BATCH = 32
GROUP = 8
# With two groups or more, sorting by length and mixing lengths put every text into two different batches.
TEXTS_MIN = 2 * GROUP
# fp32 kernels that sum in another order stay above 0.999999; cosines below this are explained.
STEADY = 0.9999

# NodeProto.op_type is field 4, a string (onnx.proto): tag 0x22, length, name. Both operators have names of 21 letters.
_ONE_SCALE_OPERATORS = (b"\x22\x15DynamicQuantizeLinear", b"\x22\x15DynamicQuantizeMatMul")
# Instruction sets that add int8 products in pairs at 16 bits (oneDNN, "Int8 computations": vpmaddubsw).
_WITHOUT_VNNI: frozenset[Isa] = frozenset({"sse4_1", "avx2", "avx512_core"})

ONE_SCALE = (
    "dynamic int8 gives each activation tensor one scale for the whole batch, padding included, so a text's embedding depends "
    "on its batch: use static int8 (quantize_static), or run this model at batch 1 without padding"
)
SATURATION = (
    "a CPU without VNNI adds the int8 products of unsigned activations and signed weights in pairs at 16 bits, which can saturate: "
    "reduce the weights' range to 7 bits or use uint8 weights, and do not share vectors with CPUs that have VNNI"
)
LOW_PRECISION = (
    "{precision} keeps 2 to 3 digits of each result, and other shapes, threads and kernels sum in another order: set "
    "inference_precision to f32 if vectors must match"
)
NEXT_STEP = (
    "another shape, number of threads or instruction set can run other kernels, whose sums "
    "differ in the last bit; if activations are rounded to int8, that bit can move a value by a whole step: keep more layers in "
    "float, or keep the condition fixed"
)
BROKEN = "the model returned NaN, infinity or a zero vector: remove the step that made it, or report the engine's bug"


class StabilityRow(Frozen):
    """The embeddings under one condition against the reference.

    Attributes:
        condition: `batch of 32, mixed lengths`, `1 thread`, `as avx2`.
        fidelity: cosines to the reference; None if the condition was left out.
        top: changes among the nearest documents; None without documents.
        explanation: the likely cause and its cure if the worst cosine is below 0.9999; else empty.
        left_out: why this condition was not measured; empty if it was.
    """

    condition: str
    changes: ConditionKind
    fidelity: Fidelity | None = None
    worst_text: str = ""
    top: TopChanges | None = None
    explanation: str = ""
    left_out: str = ""


class Stability(Frozen):
    """How far each condition moves the embeddings of the same texts, a row per condition.

    Attributes:
        reference: describes the condition that all rows are compared with.
        n_documents: number of documents ranked for each text; 0 for none.
    """

    sha256: str
    engine: dict[str, JsonValue]
    reference: str
    n_texts: int
    n_documents: int
    rows: tuple[StabilityRow, ...]

    def below(self, limit: float) -> tuple[StabilityRow, ...]:
        """The measured conditions whose worst cosine is below `limit`."""
        return tuple(row for row in self.rows if row.fidelity is not None and row.fidelity.minimum < limit)

    def worst(self, changes: ConditionKind) -> StabilityRow | None:
        """The condition of that kind in which a text moved most; None where none was measured."""
        rows = [(row.fidelity.minimum, row) for row in self.rows if row.changes == changes and row.fidelity is not None]
        return min(rows, key=lambda pair: pair[0], default=(1.0, None))[1]

    @property
    def explanations(self) -> tuple[str, ...]:
        """The distinct explanations."""
        return tuple(dict.fromkeys(row.explanation for row in self.rows if row.explanation))


STABILITY_COLUMNS = ("condition", "worst cosine", "mean cosine", "other top 10", "other order", "worst text, or why left out")
TEXT_SHOWN = 60


def stability_rows(stability: Stability) -> list[list[str]]:
    """The text cells of each condition, under `STABILITY_COLUMNS`."""
    lines = []
    for row in stability.rows:
        if row.fidelity is None:
            lines.append([row.condition, "left out", "", "", "", row.left_out])
            continue
        tops = ["", ""] if row.top is None else [str(row.top.other_documents), str(row.top.other_order)]
        worst, mean = (f"{cosine:.7f}" for cosine in (row.fidelity.minimum, row.fidelity.mean))
        shown = row.worst_text if len(row.worst_text) <= TEXT_SHOWN else row.worst_text[: TEXT_SHOWN - 1] + "…"
        # If no text moved, which one is worst is chance.
        lines.append([row.condition, worst, mean, *tops, "" if worst == "1.0000000" else shown])
    return lines


@dataclass(frozen=True)
class _Condition:
    """A condition to measure: what it changes, and how to run it or why not."""

    name: str
    changes: ConditionKind
    arrangement: Arrangement = ALONE
    subject: Subject | None = None
    left_out: str = ""


@dataclass(frozen=True)
class StabilityTexts:
    """The texts to embed under every condition.

    Attributes:
        texts: at least 16 real texts of mixed lengths, without prompts.
        prompt: name of the prompt prepended to each; None for no prompt.
        documents: (documents, dimension) float32, rows of length 1, the index; the ten nearest to each text are then compared
            too.
    """

    texts: Sequence[str]
    prompt: str | None = "query"
    documents: Vectors | None = None


def measure_stability(
    subject: Subject,
    sample: StabilityTexts,
    *,
    isas: Sequence[Isa] = (),
    threads: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Stability:
    """Embed the same texts under every condition, and compare the embeddings with those of each text alone.

    The reference runs with the subject's own threads and instruction set. It is compared with each number of `threads`, by default 1
    and all that this process may use, and with each of `isas`.

    Raises:
        EngineError: the engine cannot open the artifact, or cannot be limited to the subject's instruction set. A condition that it
            refuses is left out, with the reason.
        MachineError: a process was killed, usually for lack of memory.
        MeasureError: too few texts, documents of another dimension, or a broken reference.
    """
    artifact, engine, isa = subject.artifact, subject.engine.reference(subject.artifact), subject.isa
    as_opened, subject = subject, replace(subject, engine=engine)
    n_texts = len(sample.texts)
    if n_texts < TEXTS_MIN:
        raise MeasureError(f"stability: {n_texts} texts; expected at least {TEXTS_MIN}, so that each is batched with two different sets")
    if threads is not None and min(threads, default=1) < 1:
        raise MeasureError(f"stability: {min(threads)} threads; expected at least 1")
    try:
        description = describe(artifact.path)
    except BaseModelError as error:
        raise MeasureError(f"{artifact.path}: its stability cannot be measured: {error}") from error
    own_threads = engine.threads or usable_threads()
    inside = _arrangement_conditions(description, n_texts)
    apart = [] if as_opened == subject else [_Condition("on static lengths", "padding", subject=as_opened)]
    apart += [*_thread_conditions(subject, own_threads, threads), *_isa_conditions(subject, isas)]
    comparison = _Comparison(sample, description.body.pad_id, 1 + len(inside) + len(apart), progress)
    with comparison.open(subject) as worker:
        comparison.embed_reference(worker)
        comparison.one_scale, comparison.precision = _has_one_scale(artifact), engine.precision
        rows = [comparison.measure(condition, worker) for condition in inside]
    for condition in apart:
        if condition.subject is None:
            rows.append(comparison.leave_out(condition, condition.left_out))
            continue
        try:
            with comparison.open(condition.subject) as worker:
                rows.append(comparison.measure(condition, worker))
        except EngineError as error:  # for example, more threads than OpenVINO allows
            rows.append(comparison.leave_out(condition, str(error)))
    return Stability(
        sha256=artifact.sha256,
        engine=as_opened.engine_options,
        reference=f"each text alone, {_count_threads(own_threads)}" + (f", as {isa}" if isa else ""),
        n_texts=n_texts,
        n_documents=0 if sample.documents is None else len(sample.documents),
        rows=tuple(rows),
    )


def _arrangement_conditions(description: Description, n_texts: int) -> list[_Condition]:
    batch = min(BATCH, n_texts)
    # Left padding keeps the embedding only if positions skip padding and the pooling is a mean.
    left_out = ""
    if description.body.architecture == "BertModel":
        left_out = "BertModel counts positions from the first column, so left padding shifts every token's position: pad on the right"
    elif description.pooling == "cls":
        left_out = "the embedding is that of the first column, which left padding occupies: pad on the right"
    return [
        _Condition("again, in reverse order", "order", Arrangement(order="reversed")),
        _Condition("padded on the right", "padding", Arrangement(padding="right")),
        _Condition("padded on the left", "padding", Arrangement(padding="left"), left_out=left_out),
        _Condition(f"batch of {batch}, mixed lengths", "batch", Arrangement(order="mixed", size=batch)),
        _Condition(f"batch of {GROUP}, similar lengths", "batch", Arrangement(order="like", size=GROUP)),
        _Condition(f"batch of {GROUP}, mixed lengths", "batch", Arrangement(order="mixed", size=GROUP)),
    ]


def _thread_conditions(subject: Subject, own: int, threads: Sequence[int] | None) -> list[_Condition]:
    counts = list(dict.fromkeys((1, usable_threads()) if threads is None else threads))
    if threads is None and counts != [own]:
        counts = [count for count in counts if count != own]
    conditions = []
    for count in counts:
        if count == own:
            conditions.append(_Condition(_count_threads(count), "threads", left_out=f"the reference already runs on {_count_threads(own)}"))
        else:
            engine = subject.engine.model_copy(update={"threads": count})
            conditions.append(_Condition(_count_threads(count), "threads", subject=replace(subject, engine=engine)))
    return conditions


def _isa_conditions(subject: Subject, isas: Sequence[Isa]) -> list[_Condition]:
    conditions = []
    for isa in dict.fromkeys(isas):
        capped = replace(subject, isa=isa)
        same = isa == (subject.isa or read_machine().isa)
        left_out = f"the reference already runs on {isa}" if same else capped.refusal
        conditions.append(_Condition(f"as {isa}", "isa", subject=None if left_out else capped, left_out=left_out))
    return conditions


def _count_threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


class _Comparison:
    """Embeds the texts under each condition in worker processes, and compares the vectors with the reference."""

    def __init__(self, sample: StabilityTexts, pad_id: int, passes: int, progress: Progress) -> None:
        self.one_scale, self.precision = False, "fp32"
        self._sample, self._pad_id, self._passes, self._progress = sample, pad_id, passes, progress
        self._done = 0

    def open(self, subject: Subject) -> Worker:
        payload = {"texts": list(self._sample.texts), "prompt": self._sample.prompt, "pad_id": self._pad_id}
        return subject.start(serve_arrangements, payload)

    def embed_reference(self, worker: Worker) -> None:
        self._reference = np.array(self._request(worker, "reference", ALONE)["vectors"], dtype=np.float32)
        if self._sample.documents is not None:
            dimension = self._reference.shape[1]
            if self._sample.documents.shape[1:] != (dimension,):
                raise MeasureError(
                    f"stability: document vectors have shape {self._sample.documents.shape}; expected (documents, {dimension}); "
                    "embed the documents with a model of the same dimension"
                )
            self._top = top_results(self._reference, self._sample.documents)

    def measure(self, condition: _Condition, worker: Worker) -> StabilityRow:
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
            worst_text=self._sample.texts[fidelity.worst],
            top=None if self._sample.documents is None else compare_tops(self._top, top_results(vectors, self._sample.documents)),
            explanation=self._explain(condition, fidelity),
        )

    def leave_out(self, condition: _Condition, reason: str) -> StabilityRow:
        self._done += 1
        # An engine's error may have several lines.
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
        if condition.changes == "isa" and condition.subject is not None and condition.subject.isa in _WITHOUT_VNNI:
            return SATURATION
        if self.one_scale and condition.changes in ("batch", "padding"):
            return ONE_SCALE
        return NEXT_STEP if self.precision == "fp32" else LOW_PRECISION.format(precision=self.precision)


def _has_one_scale(artifact: Artifact) -> bool:
    """Whether an ONNX graph quantizes activations at run time with one scale for a whole tensor."""
    if artifact.kind is not Kind.ONNX:
        return False
    # Searches the bytes: parsing the graph would load gigabytes of inline weights into memory.
    with artifact.main_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return any(graph.find(operator) >= 0 for operator in _ONE_SCALE_OPERATORS)
