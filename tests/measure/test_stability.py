"""Stability: what moves an embedding is caught, measured against the right thing, and explained."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, copy_companions, seal
from optbench.artifact.manifest import Kind
from optbench.engines import Engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.errors import EngineError, MeasureError
from optbench.machine.cpu import Isa, read_machine, usable_threads
from optbench.measure import subject as subject_module
from optbench.measure.fidelity import Fidelity
from optbench.measure.stability import (
    NEXT_STEP,
    ONE_SCALE,
    STABILITY_COLUMNS,
    Stability,
    StabilityRow,
    StabilityTexts,
    measure_stability,
    stability_rows,
)
from optbench.measure.subject import Subject
from optbench.measure.top_changes import TopChanges, compare_tops, top_results
from optbench.steps.base import StepContext
from optbench.steps.quantize_dynamic import QuantizeDynamic
from tests.conftest import WORDS

MakeArtifact = Callable[..., Artifact]
Vectors = NDArray[np.float32]

# 20 texts of 1 to 13 words, no two with the same words.
TEXTS = [" ".join(WORDS[(3 * start + step) % len(WORDS)] for step in range(1 + start * 7 % 13)) for start in range(20)]
# float32 keeps 24 bits, so unit vectors agree to about 1e-7 a component; the kernels add the 32 to 64 terms of each of some twenty
# products in other orders, which costs a few bits more. A wrong mask or position moves the cosine by 1e-2 and more.
STEADY_FP32 = 1 - 1e-5
# The cosine of a vector with itself: 32 products and sums in float64.
SAME = 1e-14


def measure(
    artifact: Artifact, engine: Engine, texts: list[str], *, documents: Vectors | None = None, isa: Isa | None = None, **options: Any
) -> Stability:
    """The stability of an artifact in an engine, on these texts as queries."""
    return measure_stability(Subject(artifact, engine, isa), StabilityTexts(texts, documents=documents), **options)


def unit(*degrees: float) -> Vectors:
    return np.array([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees], dtype=np.float32)


def test_changes_among_the_nearest_ten_are_counted_right_on_vectors_by_hand() -> None:
    # Twelve documents, a degree apart. From 0 degrees the nearest ten are 0..9 in order.
    documents = unit(*range(12))
    before = top_results(unit(0, 0, 0, 0), documents)
    assert before[0] == tuple(map(str, range(10)))
    # 0.2 keeps all; 0.7 swaps the first two; 3.4 still finds 0..9, in another order; 11 finds 2..11.
    after = top_results(unit(0.2, 0.7, 3.4, 11), documents)
    assert compare_tops(before, after) == TopChanges(other_documents=1, other_order=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_broken_vector_finds_other_documents(bad: float) -> None:
    documents = unit(*range(12))
    vectors = unit(0, 5)
    broken = vectors.copy()
    broken[1] = bad
    after = top_results(broken, documents)
    assert after[1] is None
    assert compare_tops(top_results(vectors, documents), after) == TopChanges(other_documents=1, other_order=0)


def row(condition: str, minimum: float | None, **options: Any) -> StabilityRow:
    fidelity = None if minimum is None else Fidelity(mean=1.0, p01=minimum, minimum=minimum, worst=0, n_texts=20)
    return StabilityRow(condition=condition, changes="batch", fidelity=fidelity, **options)


def by_hand(*rows: StabilityRow) -> Stability:
    return Stability(sha256="f", engine={}, reference="each text alone, 1 thread", n_texts=20, n_documents=12, rows=rows)


def test_conditions_below_a_floor_are_named_and_one_left_out_is_not() -> None:
    stability = by_hand(row("steady", 0.99999), row("at the floor", 0.999), row("moved", 0.95), row("not measured", None, left_out="why"))
    assert [each.condition for each in stability.below(0.999)] == ["moved"]
    assert stability.below(0.9) == ()


def test_a_cause_is_said_once() -> None:
    stability = by_hand(row("a", 0.9, explanation=ONE_SCALE), row("b", 1.0), row("c", 0.9, explanation=ONE_SCALE))
    assert stability.explanations == (ONE_SCALE,)


def test_rows_for_a_table_have_a_cell_for_every_column() -> None:
    top = TopChanges(other_documents=3, other_order=4)
    stability = by_hand(
        row("moved", 0.95, worst_text="x" * 70, top=top), row("left", None, left_out="no such set"), row("same", 1.0, worst_text="red shoe")
    )
    lines = stability_rows(stability)
    assert lines[0] == ["moved", "0.9500000", "1.0000000", "3", "4", "x" * 59 + "…"]
    assert lines[1] == ["left", "left out", "", "", "", "no such set"]
    # No text moved, so none is named.
    assert lines[2] == ["same", "1.0000000", "1.0000000", "", "", ""]
    assert {len(line) for line in lines} == {len(STABILITY_COLUMNS)}


def measured(stability: Stability) -> dict[str, float]:
    """The worst cosine of every condition that was measured."""
    return {each.condition: each.fidelity.minimum for each in stability.rows if each.fidelity is not None}


def left_out(stability: Stability) -> dict[str, str]:
    return {each.condition: each.left_out for each in stability.rows if each.fidelity is None}


BATCHES = ["batch of 20, mixed lengths", "batch of 8, similar lengths", "batch of 8, mixed lengths"]


@pytest.mark.parametrize(
    ("engine", "kind"), [(Torch(threads=1), Kind.CHECKPOINT), (OnnxRuntime(threads=1), Kind.ONNX)], ids=["torch", "ort"]
)
def test_fp32_is_steady_under_every_condition(make_artifact: MakeArtifact, engine: Engine, kind: Kind) -> None:
    # Two threads can be asked for on any machine; documents of the model's dimension, seeded.
    documents = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    stability = measure(make_artifact(kind), engine, TEXTS, documents=documents, threads=(1, 2))
    worst = measured(stability)
    assert list(worst) == ["again, in reverse order", "padded on the right", *BATCHES, "2 threads"]
    assert worst["again, in reverse order"] == pytest.approx(1, abs=SAME)
    assert min(worst.values()) > STEADY_FP32
    assert stability.below(STEADY_FP32) == ()
    assert stability.explanations == ()
    # Rounding swaps neighbors whose cosines agree to seven digits; among 50 at random there are none.
    assert [each.top for each in stability.rows if each.fidelity] == [TopChanges(other_documents=0, other_order=0)] * len(worst)
    assert (stability.n_texts, stability.n_documents) == (20, 50)
    assert left_out(stability)["1 thread"] == "the reference already runs on 1 thread"
    assert stability.reference == "each text alone, 1 thread"


def test_openvino_is_steady_on_a_smaller_instruction_set(make_artifact: MakeArtifact) -> None:
    engine = OpenVino(threads=1)
    stability = measure(make_artifact(Kind.OPENVINO), engine, TEXTS, isas=("avx2", read_machine().isa), threads=())
    worst, reasons = measured(stability), left_out(stability)
    assert min(worst.values()) > STEADY_FP32
    assert reasons[f"as {read_machine().isa}"] == f"the reference already runs on {read_machine().isa}"
    if "avx2" not in read_machine().flags:
        assert "this CPU lacks avx2" in reasons["as avx2"]
    elif read_machine().isa != "avx2":
        assert "as avx2" in worst


class FakeWorker:
    """Stands in for a worker process: keeps how it was started, and gives every text the same vector."""

    started: ClassVar[list[tuple[int, dict[str, str] | None]]] = []

    def __init__(self, function: Any, payload: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.started.append((payload["subject"]["engine"]["threads"], environment))

    def request(self, message: dict[str, Any], on_progress: Any) -> dict[str, Any]:
        return {"vectors": [[1.0, 0.0]] * len(TEXTS)}

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.skipif("avx2" not in read_machine().flags, reason="the CPU has no AVX2 to be held to")
def test_each_thread_count_and_instruction_set_has_a_process_of_its_own(
    make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject_module, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "started", [])
    engine = OpenVino(threads=2)
    measure(make_artifact(Kind.OPENVINO), engine, TEXTS, threads=(1, 2, 3), isa="avx2", isas=("sse4_1", "avx2"))
    held, smaller = engine.isa_variables("avx2"), engine.isa_variables("sse4_1")
    assert FakeWorker.started == [(2, held), (1, held), (3, held), (2, smaller)]


def test_static_lengths_are_a_condition_of_their_own_and_no_part_of_the_reference(
    make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    class Recorder(FakeWorker):
        def __init__(self, function: Any, payload: dict[str, Any], environment: dict[str, str] | None = None) -> None:
            opened.append(payload["subject"]["engine"]["static_lengths"])

    monkeypatch.setattr(subject_module, "Worker", Recorder)
    stability = measure(make_artifact(Kind.OPENVINO), OpenVino(threads=1, static_lengths=(8, 16)), TEXTS, threads=(2,))
    assert opened == [[], [8, 16], []]
    assert [row.condition for row in stability.rows][-2:] == ["on static lengths", "2 threads"]
    assert stability.engine["static_lengths"] == [8, 16]


def test_instruction_set_that_the_engine_refuses_is_left_out_with_its_words(make_artifact: MakeArtifact) -> None:
    stability = measure(make_artifact(Kind.ONNX), OnnxRuntime(threads=1), TEXTS, isas=("sse4_1",), threads=())
    assert left_out(stability)["as sse4_1"].startswith("isa sse4_1: onnxruntime selects its kernels by the CPU")


def test_threads_that_the_engine_refuses_are_left_out_with_its_words(make_artifact: MakeArtifact) -> None:
    stability = measure(make_artifact(Kind.OPENVINO), OpenVino(threads=1), TEXTS, threads=(1000,))
    reason = left_out(stability)["1000 threads"]
    assert "not 1000; lower threads" in reason
    assert "\n" not in reason


def test_left_out_threads_are_one_and_all_that_may_be_used(make_artifact: MakeArtifact) -> None:
    stability = measure(make_artifact(Kind.ONNX), OnnxRuntime(), TEXTS)
    rows = [each for each in stability.rows if each.changes == "threads"]
    assert [each.condition for each in rows] == ["1 thread"]
    # On a machine with one core there is nothing to compare, and the row says so.
    assert (rows[0].fidelity is None) == (usable_threads() == 1)


@pytest.mark.parametrize(
    ("architecture", "pooling", "reason"),
    [
        ("BertModel", "mean", "BertModel counts positions from the first column"),
        ("XLMRobertaModel", "cls", "the embedding is that of the first column"),
        ("XLMRobertaModel", "mean", None),
    ],
)
def test_padding_on_the_left_is_measured_where_positions_and_pooling_skip_it(
    make_artifact: MakeArtifact, architecture: str, pooling: str, reason: str | None
) -> None:
    stability = measure(make_artifact(Kind.ONNX, architecture, pooling), OnnxRuntime(threads=1), TEXTS, threads=())
    if reason is None:
        assert measured(stability)["padded on the left"] > STEADY_FP32
    else:
        assert reason in left_out(stability)["padded on the left"]


def test_texts_without_room_for_padding_leave_it_out(make_artifact: MakeArtifact) -> None:
    long = [" ".join([WORDS[start % len(WORDS)]] * 70) for start in range(16)]
    stability = measure(make_artifact(Kind.ONNX), OnnxRuntime(threads=1), long, threads=())
    assert "every text has the model's maximum of 64 tokens" in left_out(stability)["padded on the right"]


@pytest.fixture
def dynamic_int8(make_artifact: MakeArtifact, make_context: Callable[..., StepContext], tmp_path: Path) -> Artifact:
    (tmp_path / "staging").mkdir()
    QuantizeDynamic().run(make_artifact(Kind.ONNX), tmp_path / "staging", make_context())
    return seal(tmp_path / "staging", tmp_path / "sealed", Kind.ONNX, "random")


def test_dynamic_int8_is_caught_in_batches_and_explained(dynamic_int8: Artifact) -> None:
    stability = measure(dynamic_int8, OnnxRuntime(threads=1), TEXTS, threads=())
    caught = {each.condition: each for each in stability.below(0.9999)}
    assert set(caught) & set(BATCHES)
    assert {each.explanation for each in caught.values()} == set(stability.explanations) == {ONE_SCALE}
    worst = caught[BATCHES[0]]
    assert worst.fidelity is not None
    assert worst.worst_text == TEXTS[worst.fidelity.worst]
    # Each scale is the text's own when it runs alone, whatever ran before.
    assert measured(stability)["again, in reverse order"] == pytest.approx(1, abs=SAME)


@pytest.fixture
def batch_mean_added(make_artifact: MakeArtifact, tmp_path: Path) -> Artifact:
    """A model that adds the mean of the batch to each embedding."""
    import onnx
    from onnx import helper, numpy_helper

    source = make_artifact(Kind.ONNX)
    model = onnx.load(source.main_file)
    (last,) = (node for node in model.graph.node if "sentence_embedding" in node.output)
    last.output[list(last.output).index("sentence_embedding")] = "own"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], dtype=np.int64), "rows"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["own", "rows"], ["shared"], keepdims=1),
            helper.make_node("Add", ["own", "shared"], ["sentence_embedding"]),
        ]
    )
    staging = tmp_path / "staging"
    (staging / "onnx").mkdir(parents=True)
    copy_companions(source.path, staging)
    onnx.save(model, staging / Kind.ONNX.main_file)
    return seal(staging, tmp_path / "sealed", Kind.ONNX, "random")


def test_model_whose_embeddings_depend_on_the_batch_is_caught_there_and_nowhere_else(batch_mean_added: Artifact) -> None:
    stability = measure(batch_mean_added, OnnxRuntime(threads=1), TEXTS, threads=())
    assert [each.condition for each in stability.below(0.99)] == BATCHES
    assert measured(stability)["padded on the right"] > STEADY_FP32
    # Nothing in the graph quantizes, so dynamic int8 is not blamed.
    assert stability.explanations == (NEXT_STEP,)


def test_progress_names_the_condition_and_grows(make_artifact: MakeArtifact) -> None:
    said: list[tuple[str, float | None]] = []
    measure(make_artifact(Kind.ONNX), OnnxRuntime(threads=1), TEXTS, threads=(), progress=lambda words, share: said.append((words, share)))
    shares = [share for _, share in said if share is not None]
    assert said[0] == ("stability: reference", 0.0)
    assert "stability: batch of 8, similar lengths" in {words for words, _ in said}
    assert shares == sorted(shares)
    assert 0.8 < shares[-1] < 1


def test_too_few_texts_are_refused(make_artifact: MakeArtifact) -> None:
    with pytest.raises(MeasureError, match="stability: 15 texts; expected at least 16"):
        measure(make_artifact(Kind.ONNX), OnnxRuntime(), TEXTS[:15])


def test_threads_below_one_are_refused(make_artifact: MakeArtifact) -> None:
    with pytest.raises(MeasureError, match="stability: 0 threads"):
        measure(make_artifact(Kind.ONNX), OnnxRuntime(), TEXTS, threads=(1, 0))


def test_documents_of_another_dimension_are_refused(make_artifact: MakeArtifact) -> None:
    with pytest.raises(MeasureError, match=r"document vectors have shape \(3, 7\); expected \(documents, 32\)"):
        measure(make_artifact(Kind.ONNX), OnnxRuntime(threads=1), TEXTS, documents=np.ones((3, 7), dtype=np.float32))


def test_engine_that_cannot_open_the_artifact_says_so(make_artifact: MakeArtifact) -> None:
    with pytest.raises(EngineError, match="is onnx, but Torch opens checkpoint"):
        measure(make_artifact(Kind.ONNX), Torch(), TEXTS)
