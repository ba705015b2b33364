"""compress_tables: rows in 8 bits, what is left alone and why, vectors that stay where they are."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from openvino import opset13
from pydantic import ValidationError

from optbench.artifact.folder import Artifact, copy_companions, hash_file, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.measure.fidelity import measure_fidelity
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps.base import BaseStep, StepContext, StepReport
from optbench.steps.compress_tables import CompressTables
from optbench.steps.compress_weights import CompressWeights
from optbench.steps.openvino.graph import save_graph
from optbench.steps.openvino.tables import SCALE_MIN, quantize_table_rows

TEXTS = ["red running shoe", "waterproof boot", "small oak desk lamp", "wireless mouse", "large blue chair"]
Run = Callable[..., tuple[Artifact, StepReport]]


@pytest.fixture
def run(tmp_path: Path, make_context: Callable[..., StepContext]) -> Run:
    """Run a step into a folder of its own and seal it."""
    number = iter(range(100))

    def run_step(step: BaseStep, source: Artifact) -> tuple[Artifact, StepReport]:
        folder = tmp_path / f"run{next(number)}"
        (folder / "staging").mkdir(parents=True)
        (folder / "scratch").mkdir()
        report = step.run(source, folder / "staging", dataclasses.replace(make_context(), scratch=folder / "scratch"))
        return seal(folder / "staging", folder / "sealed", Kind.OPENVINO, source.weights), report

    return run_step


@pytest.fixture
def tiny(make_artifact: Callable[..., Artifact]) -> Artifact:
    return make_artifact(Kind.OPENVINO, "BertModel", "mean")


def embed(artifact: Artifact, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(artifact.main_file, "CPU", options)
    ids, mask = encode_batch(load_tokenizer(artifact.path), texts)
    return np.array(compiled([ids, mask])["sentence_embedding"], dtype=np.float32)


def lookup_artifact(folder: Path, source: Artifact, build: Callable[["ov.Node"], "ov.Node"]) -> Artifact:
    """An artifact whose graph is what `build` makes of its input_ids."""
    ids = opset13.parameter([-1, -1], ov.Type.i64, name="input_ids")
    (folder / "staging").mkdir(parents=True)
    save_graph(ov.Model([opset13.result(build(ids))], [ids], "lookup"), folder / "staging")
    copy_companions(source.path, folder / "staging")
    return seal(folder / "staging", folder / "sealed", Kind.OPENVINO, "random")


FINITE_ROWS = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-1e4, 1e4, width=32))


@pytest.mark.parametrize("symmetric", [False, True])
@given(rows=FINITE_ROWS)
@settings(max_examples=200, deadline=None)
def test_each_value_is_within_a_step_of_its_weight(rows: NDArray[np.float32], symmetric: bool) -> None:
    rounded = quantize_table_rows(rows, symmetric=symmetric)
    scales = rounded.scales.astype(np.float64)
    zeros = 0.0 if rounded.zero_points is None else rounded.zero_points.astype(np.float64)
    error = np.abs((rounded.values.astype(np.float64) - zeros) * scales - rows)
    # Half a step by rounding the weight, half by rounding the zero point, and 255 steps whose float16 size is up to 2^-11 short.
    assert (error <= scales * (1 + 255 * 2**-11) + 1e-9).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_row_keeps_scale_one_and_stays_zero(symmetric: bool) -> None:
    rounded = quantize_table_rows(np.zeros((2, 4), dtype=np.float32), symmetric=symmetric)
    zeros = 0 if rounded.zero_points is None else rounded.zero_points
    assert (rounded.scales == 1).all()
    assert not (rounded.values - zeros).any()


def test_tiny_row_is_not_divided_by_a_scale_that_float16_cannot_hold() -> None:
    rounded = quantize_table_rows(np.full((1, 4), 1e-9, dtype=np.float32), symmetric=False)
    assert rounded.scales[0, 0] == np.float16(SCALE_MIN)


@pytest.mark.parametrize(
    ("tables", "least"),
    [
        # The word table's rows of deviation 0.25 span about 1.1 over 32 weights: a step of 1.1 / 255 and an error of a step over
        # sqrt(12), 0.5 % of a weight's deviation, so a cosine of about 1 - 0.005^2 / 2 into the first layer; ten times that to
        # leave room for what two random layers make of it. Symmetric steps are at most 2 x as wide.
        ("int8_asym", 1 - 1.3e-4),
        ("int8_sym", 1 - 5e-4),
        ("fp16", 1 - 1e-6),  # 2^-11 of each weight, likewise
    ],
)
def test_vectors_stay_where_they_are(tiny: Artifact, run: Run, tables: Any, least: float) -> None:
    compressed, report = run(CompressTables(tables=tables, min_bytes=0, expect=2), tiny)
    assert report.matched == {tables: 2}  # words and positions
    assert measure_fidelity(embed(tiny), embed(compressed)).minimum > least


def test_looked_up_rows_are_the_rounded_rows(tiny: Artifact, run: Run, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)  # more rows than one block
    source = lookup_artifact(
        tmp_path / "lookup", tiny, lambda ids: opset13.gather(opset13.constant(table, name="words"), ids, opset13.constant(0))
    )
    compressed, report = run(CompressTables(min_bytes=0), source)
    assert report.facts == {"table_bytes": 5000 * (16 + 2 + 1), "source_table_bytes": 5000 * 16 * 4}
    ids = np.array([[0, 4095, 4096, 4999]])
    looked_up = np.array(ov.Core().compile_model(compressed.main_file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([ids])[0])[0]
    rounded = quantize_table_rows(table, symmetric=False)
    assert rounded.zero_points is not None
    expected = (rounded.values.astype(np.float32) - rounded.zero_points) * rounded.scales.astype(np.float32)
    # The graph multiplies in float16: 2^-11 of a value of at most 5.
    np.testing.assert_allclose(looked_up, expected[ids[0]], atol=5 * 2**-11)


def test_source_is_byte_identical_and_companions_come_along(tiny: Artifact, run: Run) -> None:
    compressed, _ = run(CompressTables(min_bytes=0), tiny)
    assert open_artifact(tiny.path) == tiny
    assert hash_file(compressed.path / "tokenizer.json") == hash_file(tiny.path / "tokenizer.json")


def test_two_runs_give_the_same_bytes(tiny: Artifact, run: Run) -> None:
    assert run(CompressTables(min_bytes=0), tiny)[0].sha256 == run(CompressTables(min_bytes=0), tiny)[0].sha256


def test_order_of_the_two_compressions_does_not_matter(tiny: Artifact, run: Run) -> None:
    weights, tables = CompressWeights(weights="int8_asym"), CompressTables(min_bytes=0, expect=2)
    weights_first, _ = run(tables, run(weights, tiny)[0])
    tables_first, report = run(weights, run(tables, tiny)[0])
    assert report.matched == {"u8": 12}
    # The same codes and scales; the products may be summed in another order.
    np.testing.assert_allclose(embed(weights_first), embed(tables_first), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "table", "reason"),
    [
        ({"min_bytes": 0, "exclude": ("*position_embeddings*",)}, "position_embeddings", "exclude names it"),
        ({"min_bytes": 3000}, "word_embeddings", "it has 2688 bytes, less than min_bytes"),
    ],
)
def test_excluded_and_small_tables_are_left_with_the_reason(
    tiny: Artifact, run: Run, options: dict[str, Any], table: str, reason: str
) -> None:
    _, report = run(CompressTables(**options), tiny)
    assert report.matched == {"int8_asym": 1}
    assert [(refusal.node.split(".")[-2], refusal.reason) for refusal in report.refused] == [(table, reason)]


def test_no_table_large_enough_is_an_error_that_lists_them(tiny: Artifact, run: Run) -> None:
    with pytest.raises(
        StepError, match=r"finds 0 tables to compress, 1 are expected\..*word_embeddings.* less than min_bytes.*Lower min_b"
    ):
        run(CompressTables(), tiny)


def test_compressing_twice_is_an_error_with_the_reason(tiny: Artifact, run: Run) -> None:
    compressed, _ = run(CompressTables(min_bytes=0), tiny)
    with pytest.raises(StepError, match=r"word_embeddings\.weight: it is u8: it is compressed already"):
        run(CompressTables(min_bytes=0), compressed)


def test_pattern_that_matches_nothing_names_the_closest_table(tiny: Artifact, run: Run) -> None:
    with pytest.raises(StepError, match=r"compress_tables exclude: '\*word_embedings\*' matches no operation; the closest are \S*word_emb"):
        run(CompressTables(min_bytes=0, exclude=("*word_embedings*",)), tiny)


def test_table_that_a_product_reads_too_is_left_alone(tiny: Artifact, run: Run, tmp_path: Path) -> None:
    def tied(ids: ov.Node) -> ov.Node:
        table = opset13.constant(np.ones((40, 16), dtype=np.float32), name="tied")
        return opset13.matmul(opset13.gather(table, ids, opset13.constant(0)), table, False, True)

    with pytest.raises(StepError, match="tied: something other than a lookup reads it too"):
        run(CompressTables(min_bytes=0), lookup_artifact(tmp_path / "tied", tiny, tied))


def test_lookup_along_columns_is_left_alone(tiny: Artifact, run: Run, tmp_path: Path) -> None:
    def columns(ids: ov.Node) -> ov.Node:
        return opset13.gather(opset13.constant(np.ones((40, 16), dtype=np.float32), name="sideways"), ids, opset13.constant(1))

    with pytest.raises(StepError, match="sideways: it is not a matrix whose rows are looked up"):
        run(CompressTables(min_bytes=0), lookup_artifact(tmp_path / "columns", tiny, columns))


@pytest.mark.parametrize(
    ("value", "tables", "message"),
    [
        (np.nan, "int8_asym", r"words has a NaN or infinity in row 4500; download the model again"),
        (np.inf, "fp16", r"words has a NaN or infinity in row 4500; download the model again"),
        (1e6, "fp16", r"words holds 1e\+06, above float16's 65504; exclude it"),
        (-1e6, "int8_sym", r"words holds 1e\+06, above float16's 65504; exclude it"),
    ],
)
def test_value_that_the_form_cannot_hold_is_an_error(
    tiny: Artifact, run: Run, tmp_path: Path, value: float, tables: Any, message: str
) -> None:
    table = np.ones((5000, 4), dtype=np.float32)
    table[4500, 1] = value
    source = lookup_artifact(
        tmp_path / "broken", tiny, lambda ids: opset13.gather(opset13.constant(table, name="words"), ids, opset13.constant(0))
    )
    with pytest.raises(StepError, match=message):
        run(CompressTables(min_bytes=0, tables=tables), source)


@pytest.mark.parametrize("options", [{"tables": "int4"}, {"min_bytes": -1}, {"expect": 0}, {"table": "fp16"}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompressTables(**options)
