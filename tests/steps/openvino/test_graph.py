"""openvino_graph: finding weight MatMuls, the transpose rewrite, names, reproducible files, a silent NNCF."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

from optbench.artifact.folder import Artifact, hash_file, seal
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.steps.openvino.graph import (
    constant_behind,
    find_weight_matmuls,
    quiet_nncf,
    read_graph,
    save_graph,
    transpose_weights,
)
from optbench.steps.patterns import match_names

INPUTS, OUTPUTS = 32, 48
GENERATOR = np.random.default_rng(5)
WEIGHT = GENERATOR.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
ROWS = GENERATOR.standard_normal((4, INPUTS)).astype(np.float32)


def linear(weight: ov.Node | NDArray[Any], **options: bool) -> ov.Model:
    """x @ weight + bias, the bias named as torch names it."""
    x = opset13.parameter([-1, INPUTS], ov.Type.f32, name="x")
    node = weight if isinstance(weight, ov.Node) else opset13.constant(weight, name="weight")
    product = opset13.matmul(x, node, options.get("transpose_a", False), options.get("transpose_b", False), name="product")
    bias = opset13.constant(np.zeros(OUTPUTS, dtype=np.float32), name="layer.0.dense.bias")
    total = opset13.add(product, bias)
    total.output(0).set_names({"y"})
    return ov.Model([opset13.result(total)], [x], "linear")


def infer(model: ov.Model, rows: NDArray[np.float32] = ROWS) -> NDArray[np.float32]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
    return np.array(compiled([rows])[0], dtype=np.float32)


def test_linear_layer_is_found_under_its_module_its_matmul_and_its_weight_name() -> None:
    matmuls, refused = find_weight_matmuls(linear(WEIGHT))
    assert [matmul.names for matmul in matmuls] == [("layer.0.dense", "product", "weight")]
    assert (matmuls[0].inputs, matmuls[0].outputs, matmuls[0].transposed) == (INPUTS, OUTPUTS, False)
    assert refused == []


def test_product_of_two_activations_is_no_weight_matmul() -> None:
    x = opset13.parameter([-1, 4, 8], ov.Type.f32, name="x")
    model = ov.Model([opset13.result(opset13.matmul(x, x, False, True))], [x], "scores")
    assert find_weight_matmuls(model) == ([], [])


def refused_reason(model: ov.Model) -> str:
    matmuls, refused = find_weight_matmuls(model)
    assert matmuls == []
    return refused[0].reason


def test_constant_as_first_factor_is_refused_with_the_reason() -> None:
    x = opset13.parameter([OUTPUTS, -1], ov.Type.f32, name="x")
    model = ov.Model([opset13.result(opset13.matmul(opset13.constant(WEIGHT), x, False, False))], [x], "left")
    assert refused_reason(model) == "its constant is the first factor, not the second"


def test_compressed_weight_is_refused_with_the_reason() -> None:
    codes = opset13.constant(np.ones((INPUTS, OUTPUTS), dtype=np.int8))
    assert refused_reason(linear(opset13.convert(codes, "f32"))) == "its weight is i8: it is compressed already"


def test_weight_behind_a_transpose_is_refused_with_the_reason() -> None:
    turned = opset13.transpose(opset13.constant(np.ascontiguousarray(WEIGHT.T)), opset13.constant(np.array([1, 0])))
    assert refused_reason(linear(turned)) == "its weight passes through Transpose"


def test_stacked_weight_is_refused_with_the_reason() -> None:
    assert refused_reason(linear(WEIGHT[None])) == "its weight has 3 dimensions, not 2"


def test_transposed_activation_is_refused_with_the_reason() -> None:
    x = opset13.parameter([INPUTS, -1], ov.Type.f32, name="x")
    model = ov.Model([opset13.result(opset13.matmul(x, opset13.constant(WEIGHT), True, False))], [x], "turned")
    assert refused_reason(model) == "its activation is transposed"


def test_transpose_rewrite_keeps_the_product() -> None:
    model = linear(WEIGHT)
    before = infer(model)
    assert transpose_weights(find_weight_matmuls(model)[0]) == 1
    matmul = find_weight_matmuls(model)[0][0]
    assert matmul.transposed
    np.testing.assert_array_equal(matmul.constant.data, WEIGHT.T)
    # The same products of order 1, 32 of them, may be summed in another order: 32 roundings of 6e-8 of a sum below 30.
    np.testing.assert_allclose(infer(model), before, atol=6e-5, rtol=0)


def test_transpose_rewrite_keeps_names_for_patterns() -> None:
    model = linear(WEIGHT)
    names = find_weight_matmuls(model)[0][0].names
    transpose_weights(find_weight_matmuls(model)[0])
    assert find_weight_matmuls(model)[0][0].names == names


def test_transpose_rewrite_leaves_a_transposed_weight_alone() -> None:
    model = linear(np.ascontiguousarray(WEIGHT.T), transpose_b=True)
    matmuls = find_weight_matmuls(model)[0]
    assert (matmuls[0].inputs, matmuls[0].outputs) == (INPUTS, OUTPUTS)
    assert transpose_weights(matmuls) == 0


def test_transpose_rewrite_keeps_a_float16_weight_float16() -> None:
    half = WEIGHT.astype(np.float16)
    model = linear(opset13.convert(opset13.constant(half, name="weight"), "f32"))
    before = infer(model)
    assert transpose_weights(find_weight_matmuls(model)[0]) == 1
    constant = find_weight_matmuls(model)[0][0].constant
    assert constant.get_element_type() == ov.Type.f16
    np.testing.assert_array_equal(constant.data, half.T)
    np.testing.assert_allclose(infer(model), before, atol=6e-5, rtol=0)  # as above


def test_shared_weight_is_transposed_once_for_all_its_readers() -> None:
    x = opset13.parameter([-1, INPUTS], ov.Type.f32, name="x")
    weight = opset13.constant(WEIGHT, name="weight")
    products = [opset13.matmul(opset13.multiply(x, np.float32(factor)), weight, False, False) for factor in (1, 2)]
    model = ov.Model([opset13.result(product) for product in products], [x], "shared")
    assert transpose_weights(find_weight_matmuls(model)[0]) == 2
    first, second = (matmul.node.input_value(1).get_node().get_name() for matmul in find_weight_matmuls(model)[0])
    assert first == second


def test_constant_behind_an_activation_is_none() -> None:
    x = opset13.parameter([2], ov.Type.f32)
    assert constant_behind(opset13.multiply(x, x).output(0))[0] is None


def test_pattern_matches_any_of_an_operations_names() -> None:
    named = [("layer.0.query", "product"), ("layer.1.query", "product_1")]
    assert match_names(named, ["*.0.query"], "step exclude") == [True, False]
    assert match_names(named, ["product_1"], "step exclude") == [False, True]
    assert match_names(named, [], "step exclude") == [False, False]


def test_pattern_that_matches_nothing_is_an_error_with_close_names() -> None:
    named = [("layer.0.output.dense",), ("layer.0.attention.query",)]
    with pytest.raises(StepError, match=r"step exclude: '\*\.ouput\.dense' matches no operation; the closest are layer\.0\.output\.dense"):
        match_names(named, ["*.ouput.dense"], "step exclude")


def test_same_graph_built_twice_gives_the_same_file(tmp_path: Path) -> None:
    hashes = set()
    for number in range(2):
        save_graph(linear(WEIGHT), tmp_path / str(number))
        hashes.add(hash_file(tmp_path / str(number) / Kind.OPENVINO.main_file))
    assert len(hashes) == 1


def test_new_unnamed_nodes_never_take_the_name_of_a_node_that_was_read(tmp_path: Path) -> None:
    save_graph(linear(WEIGHT), tmp_path)
    model = ov.Core().read_model(tmp_path / Kind.OPENVINO.main_file)
    add = model.get_results()[0].input_value(0)
    model.get_results()[0].input(0).replace_source_output(opset13.relu(opset13.add(add, np.float32(1))).output(0))
    save_graph(model, tmp_path / "again")
    again = ov.Core().read_model(tmp_path / "again" / Kind.OPENVINO.main_file)
    names = [node.get_friendly_name() for node in again.get_ordered_ops()]
    assert len(set(names)) == len(names)


def test_broken_ir_is_one_clear_error(tmp_path: Path, make_artifact: Callable[..., Artifact]) -> None:
    staging = tmp_path / "staging"
    (staging / "openvino").mkdir(parents=True)
    (staging / Kind.OPENVINO.main_file).write_text("<net", encoding="utf-8")
    broken = seal(staging, tmp_path / "sealed", Kind.OPENVINO, "random")
    with pytest.raises(StepError, match=r"openvino_model\.xml: OpenVINO cannot read it: .*; make the artifact again"):
        read_graph(broken)


def test_nncf_messages_are_kept_and_its_logger_put_back() -> None:
    import logging

    with quiet_nncf() as (nncf, messages):
        handlers = logging.getLogger("nncf").handlers
        nncf.common.logging.nncf_logger.warning("careful")
    assert messages == ["WARNING: careful"]
    assert logging.getLogger("nncf").handlers is not handlers


def test_nncf_compresses_in_silence_without_torch_and_telemetry() -> None:
    program = """
import sys
import numpy as np
import optbench
from optbench.steps.openvino.graph import quiet_nncf
from openvino import opset13
import openvino as ov
x = opset13.parameter([-1, 64], ov.Type.f32)
model = ov.Model([opset13.result(opset13.matmul(x, opset13.constant(np.ones((64, 64), np.float32)), False, True))], [x])
with quiet_nncf() as (nncf, messages):
    nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
assert messages, "NNCF logs its table of bit widths at this level"
assert "torch" not in sys.modules, "torch was imported"
assert sys.modules["openvino_telemetry"] is None, "telemetry is no longer kept out"
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
