"""Dynamic int8 on ONNX: what is rewritten, what is left alone, and that the numbers are ONNX Runtime's own."""

import errno
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, copy_companions, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError, StepError
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.steps.base import StepContext, StepReport
from optbench.steps.onnx import file as onnx_file
from optbench.steps.onnx.weights import quantize_columns
from optbench.steps.quantize_dynamic import QuantizeDynamic

MakeContext = Callable[..., StepContext]
MakeArtifact = Callable[..., Artifact]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantize(source: Artifact, out: Path, context: StepContext, **options: Any) -> tuple[Path, StepReport]:
    out.mkdir()
    report = QuantizeDynamic(**options).run(source, out, context)
    open_artifact(source.path)  # raises where a byte of the source has changed
    return out / Kind.ONNX.main_file, report


def run(path: Path, inputs: dict[str, NDArray[Any]], output: str, *, optimize: bool = False) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run([output], inputs)[0]
    return result


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def embed(path: Path, folder: Path, texts: list[str]) -> NDArray[np.float32]:
    tokenizer = load_tokenizer(folder)
    rows = []
    for text in texts:
        ids, mask = encode_batch(tokenizer, [text])
        rows.append(run(path, {"input_ids": ids, "attention_mask": mask}, "sentence_embedding", optimize=True))
    return np.concatenate(rows)


def test_products_of_one_input_share_its_quantization(make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_onnx(
        "float[n, 8] x",
        "float[n, n] y",
        "a = MatMul(x, w)  b = MatMul(x, v)  t = Transpose(b)  y = MatMul(a, t)",
        {"w": normal(8, 4), "v": normal(8, 4, seed=1)},
    )
    path, report = quantize(source, tmp_path / "out", make_context())
    # The last product has two activations: it stays a MatMul.
    assert operators(path) == {"DynamicQuantizeLinear": 1, "MatMulInteger": 2, "Cast": 2, "Mul": 4, "Transpose": 1, "MatMul": 1}
    assert report.matched == {"MatMul": 2}
    assert [(refusal.node, refusal.reason) for refusal in report.refused] == [("/y", "multiplies two activations")]
    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert stored == {"w_quantized", "w_scale", "v_quantized", "v_scale"}


def test_error_stays_within_half_a_step_of_each_factor(make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    weight, x = normal(64, 16), normal(5, 64, seed=1)
    source = make_onnx("float[n, 64] x", "float[n, 16] y", "y = MatMul(x, w)", {"w": weight})
    path, _ = quantize(source, tmp_path / "out", make_context())
    found = run(path, {"x": x}, "y")
    weight_step = 2 * np.abs(weight).max(axis=0) / 254
    # uint8 with a rounded zero point: a value at the end of the range can be off by a whole step.
    x_step = 2 * (x.max() - x.min()) / 255
    bound = np.abs(x) @ np.tile(weight_step / 2, (64, 1)) + x_step / 2 * np.abs(weight).sum(axis=0) + 64 * x_step * weight_step / 4
    assert np.all(np.abs(found - x @ weight) <= bound + 1e-5)
    assert np.abs(found - x @ weight).max() > 0


@pytest.mark.parametrize("weight_type", ["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_numbers_are_those_of_onnxruntimes_own_quantizer(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, weight_type: str, per_channel: bool, reduce_range: bool
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = make_artifact(Kind.ONNX, "XLMRobertaModel", "cls")
    path, report = quantize(
        source, tmp_path / "out", make_context(), weight_type=weight_type, per_channel=per_channel, reduce_range=reduce_range
    )
    by_hand = tmp_path / "by_hand.onnx"
    logging.disable(logging.WARNING)  # it advises a preprocessing that would change the graph
    try:
        quantize_dynamic(
            source.main_file,
            by_hand,
            op_types_to_quantize=["MatMul"],
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8 if weight_type == "int8" else QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
    assert report.matched == {"MatMul": 12}
    assert operators(path)["MatMulInteger"] == operators(by_hand)["MatMulInteger"] == 12
    ids, mask = encode_batch(load_tokenizer(source.path), ["red waterproof shoe", "lamp"])
    inputs = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_array_equal(run(path, inputs, "last_hidden_state"), run(by_hand, inputs, "last_hidden_state"))


def test_engine_fuses_every_product_of_the_real_model(
    minilm: Callable[[Kind], Artifact], make_context: MakeContext, tmp_path: Path, shop_texts: list[str]
) -> None:
    source = minilm(Kind.ONNX)
    path, report = quantize(source, tmp_path / "out", make_context())
    assert report.matched == {"MatMul": 36}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the file suits this machine only
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = operators(tmp_path / "optimized.onnx")
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 36
    assert found["MatMulInteger"] == 0
    cosine = (embed(path, source.path, shop_texts) * embed(source.main_file, source.path, shop_texts)).sum(axis=1)
    # On 99 shop queries it is .994 on average and .982 at least.
    assert cosine.mean() > 0.985
    assert cosine.min() > 0.96


def test_excluded_products_stay_in_float_and_are_listed(make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_artifact(Kind.ONNX)
    path, report = quantize(source, tmp_path / "out", make_context(), exclude=["encoder.layer.*.output.dense.weight", "/encoder/layer.0/*"])
    # Of 12: layer 0 whole, and layer 1's two that end in output.dense.
    assert report.matched == {"MatMul": 4}
    assert report.facts["excluded"] == 8
    assert [refusal.reason for refusal in report.refused].count("named by exclude") == 8
    assert operators(path)["MatMul"] == 4 + 8


def test_two_runs_write_the_same_bytes(make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_artifact(Kind.ONNX)
    first, _ = quantize(source, tmp_path / "first", make_context(), tables="int8")
    second, _ = quantize(source, tmp_path / "second", make_context(), tables="int8")
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "first" / "tokenizer.json").is_file()


def test_large_weights_go_to_a_data_file_and_give_the_same_numbers(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_artifact(Kind.ONNX)
    inline, _ = quantize(source, tmp_path / "inline", make_context())
    monkeypatch.setattr(onnx_file, "INLINE_BYTES_MAX", 1000)
    external, _ = quantize(source, tmp_path / "external", make_context())
    assert sorted(path.name for path in external.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert [path.name for path in inline.parent.iterdir()] == ["model.onnx"]
    ids, mask = encode_batch(load_tokenizer(source.path), ["oak desk"])
    inputs = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_array_equal(run(external, inputs, "sentence_embedding"), run(inline, inputs, "sentence_embedding"))


def test_source_with_a_data_file_becomes_one_file_when_it_is_small_enough(
    make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path
) -> None:
    source = make_artifact(Kind.ONNX)
    (tmp_path / "external" / "onnx").mkdir(parents=True)
    copy_companions(source.path, tmp_path / "external")
    onnx.save(
        onnx.load(source.main_file),
        tmp_path / "external" / Kind.ONNX.main_file,
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    external = seal(tmp_path / "external", tmp_path / "sealed", Kind.ONNX, "random")
    path, _ = quantize(external, tmp_path / "out", make_context())
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    wanted, _ = quantize(source, tmp_path / "wanted", make_context())
    ids, mask = encode_batch(load_tokenizer(source.path), ["oak desk"])
    inputs = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_array_equal(run(path, inputs, "sentence_embedding"), run(wanted, inputs, "sentence_embedding"))


@pytest.mark.parametrize(
    ("flags", "weight_type", "expected"), [((), "int8", True), (("avx512_vnni",), "int8", False), ((), "uint8", False)]
)
def test_range_is_reduced_only_where_the_cpu_would_saturate(
    make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path, flags: tuple[str, ...], weight_type: str, expected: bool
) -> None:
    source = make_onnx("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", {"w": normal(8, 4)})
    context = make_context()
    context = StepContext(scratch=context.scratch, machine=context.machine.model_copy(update={"flags": flags}))
    path, report = quantize(source, tmp_path / "out", context, weight_type=weight_type)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert report.facts["reduce_range"] is expected
    assert bool(np.abs(stored["w_quantized"].astype(int)).max() <= 64) is expected


@pytest.mark.parametrize(("form", "bytes_a_value"), [("fp16", 2), ("int8", 1)])
def test_tables_shrink_and_rows_keep_their_values(
    make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path, form: str, bytes_a_value: int
) -> None:
    table = normal(300, 8) * np.logspace(-3, 3, 300, dtype=np.float32)[:, None]  # rows of every size
    source = make_onnx(
        "int64[n] ids, float[n, 8] x",
        "float[n, 8] row, float[n, 8] kind, float[n, 4] y",
        "row = Gather(table, ids)  kind = Gather(kinds, some)  y = MatMul(x, w)",
        {"table": table, "kinds": normal(2, 8), "some": np.zeros(300, np.int64), "w": normal(8, 4)},
    )
    path, report = quantize(source, tmp_path / "out", make_context(), tables=form)
    assert report.matched == {"MatMul": 1, "Gather": 1}
    sizes = {tensor.name: len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer}
    assert sizes[f"table_{form}"] == table.size * bytes_a_value
    assert sizes["kinds"] == 2 * 8 * 4  # too few rows to be worth it
    found = run(path, {"ids": np.arange(300), "x": normal(300, 8)}, "row")
    # Half a step: int8 has 254 in a row's range; fp16 has 11 bits of mantissa, and steps of 2**-24 near zero.
    bound = np.abs(table).max(axis=1, keepdims=True) / 254 if form == "int8" else np.abs(table) * 2.0**-11 + 2.0**-25
    assert np.all(np.abs(found - table) <= bound * 1.0001)


def test_zero_column_keeps_scale_one() -> None:
    weight = normal(4, 3)
    weight[:, 1] = 0
    for weight_type in ("int8", "uint8"):
        columns = quantize_columns(weight, "w", weight_type=weight_type)
        assert columns.scale[1] == 1.0
        assert not columns.values[:, 1].any()


@given(arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32)), st.sampled_from(["int8", "uint8"]), st.booleans())
def test_rounding_moves_a_weight_by_half_a_step_at_most(weight: NDArray[np.float32], weight_type: Any, reduce_range: bool) -> None:
    columns = quantize_columns(weight, "w", weight_type=weight_type, reduce_range=reduce_range)
    zero_point = 0 if columns.zero_point is None else columns.zero_point.astype(np.float64)
    restored = (columns.values.astype(np.float64) - zero_point) * columns.scale
    # A rounded zero point can shift the range of uint8 by half a step more; the last term is float32's own rounding.
    steps = 0.5 if weight_type == "int8" else 1.0
    assert np.all(np.abs(restored - weight) <= steps * columns.scale + 1e-5 * np.abs(weight) + 1e-30)


@pytest.mark.parametrize(
    ("body", "shape", "message"),
    [
        ("y = MatMul(w, x)", (8, 8), "/y: its constant is the first factor"),
        ("t = Transpose(w)  y = MatMul(x, t)", (4, 8), "/y: its weight is computed by Transpose; fold the constants first"),
        ("y = MatMul(x, w)", (1, 8, 4), "/y: its weight has 3 axes, not 2"),
        ("y = Gemm(x, w)", (8, 4), "/y: a Gemm; only MatMul has an integer counterpart"),
        ("f = DequantizeLinear(q, s)  y = MatMul(x, f)", (8, 4), "/y: its weight is quantized already"),
    ],
)
def test_place_with_a_weight_that_cannot_be_quantized_is_an_error_with_its_reason(
    make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path, body: str, shape: tuple[int, ...], message: str
) -> None:
    constants = {"w": normal(*shape), "v": normal(8, 4), "q": np.ones((8, 4), np.int8), "s": np.float32(1)}
    source = make_onnx("float[8, 8] x", "float y, float z", f"{body}  z = MatMul(x, v)", constants)
    with pytest.raises(StepError) as caught:
        quantize(source, tmp_path / "out", make_context())
    assert str(caught.value) == (
        f"{source.main_file} quantize_dynamic: 1 weight products can be quantized, 2 are expected; left alone: {message}; "
        "exclude them by name, set expect, or correct the step before"
    )
    _, report = quantize(source, tmp_path / "expected", make_context(), expect=1)
    assert report.matched == {"MatMul": 1}
    _, report = quantize(source, tmp_path / "excluded", make_context(), exclude=["/y"])
    assert report.matched == {"MatMul": 1}


def test_graph_without_a_weight_is_an_error(make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_onnx("float[8, 8] x", "float[8, 8] y", "y = MatMul(x, x)", {})
    with pytest.raises(StepError, match="0 weight products can be quantized, 1 are expected; left alone: none, the graph holds no more"):
        quantize(source, tmp_path / "out", make_context())


def test_pattern_that_matches_nothing_names_the_closest(make_artifact: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"exclude: 'encoder\.layer\.9\.\*' matches no operation; the closest are .*encoder"):
        quantize(make_artifact(Kind.ONNX), tmp_path / "out", make_context(), exclude=["encoder.layer.9.*"])


def test_broken_weight_is_named_with_its_row(make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    weight = normal(8, 4)
    weight[3, 2] = np.nan
    source = make_onnx("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", {"w": weight})
    with pytest.raises(StepError, match="w: row 3 holds a NaN or an infinity"):
        quantize(source, tmp_path / "out", make_context())


def test_file_that_is_no_onnx_is_an_error(make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path) -> None:
    source = make_onnx("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", {"w": normal(8, 4)})
    source.main_file.write_bytes(b"\xff" * 64)
    with pytest.raises(StepError, match="cannot be read as ONNX"):
        QuantizeDynamic().run(source, tmp_path, make_context())


def test_full_disk_is_an_error_that_says_so(
    make_onnx: MakeArtifact, make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir

    def save(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_ir, "save", save)
    source = make_onnx("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", {"w": normal(8, 4)})
    with pytest.raises(MachineError, match=r"model\.onnx: cannot be written: No space left on device; free some space and run again"):
        quantize(source, tmp_path / "out", make_context())
