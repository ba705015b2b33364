"""Rewrites that make a graph round the same for a fixed shape and for any shape, each with a graph by hand."""

from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

from optbench.steps.openvino.rounding import fold_token_types, set_unit_scales

WIDTH, OUTPUTS, ROWS = 64, 16, 4096
GENERATOR = np.random.default_rng(11)
# Inside the quantizers' ranges, also with a scale of 2.
X = GENERATOR.uniform(-2.2, 2.2, (1, ROWS, WIDTH)).astype(np.float32)
SMOOTHING = GENERATOR.uniform(0.5, 2, (1, 1, WIDTH)).astype(np.float32)
WEIGHTS = GENERATOR.integers(-60, 60, (OUTPUTS, WIDTH)).astype(np.int8)


def quantized(low: float, high: float, *, smoothed: bool = True) -> ov.Model:
    """x * smoothing -> FakeQuantize -> an int8 product, as `quantize_static` writes them; returns the product."""
    x = opset13.parameter([1, -1, WIDTH], ov.Type.f32, name="x")
    activation = opset13.multiply(x, opset13.constant(SMOOTHING)) if smoothed else opset13.relu(x)
    bounds = [opset13.constant(np.float32(bound)) for bound in (low, high, low, high)]
    rounded = opset13.fake_quantize(activation, *bounds, levels=256, name="fq")
    weights = opset13.multiply(opset13.convert(opset13.constant(WEIGHTS), ov.Type.f32), opset13.constant(np.float32(0.01)))
    product = opset13.matmul(rounded, weights, False, True, name="product")
    return ov.Model([opset13.result(product)], [x], "quantized")


def run(model: ov.Model, *, fixed: bool) -> NDArray[np.float32]:
    chosen = model.clone()
    if fixed:
        chosen.reshape({"x": [1, ROWS, WIDTH]})
    compiled = ov.Core().compile_model(chosen, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return np.array(compiled([X])[0], dtype=np.float32)


def count_moved(model: ov.Model) -> int:
    """Rows of the product that differ between a fixed shape and any shape."""
    return int((run(model, fixed=True) != run(model, fixed=False)).any(axis=2).sum())


def operators(model: ov.Model) -> list[str]:
    return sorted(node.get_type_name() for node in model.get_ops())


# Zero points 111 (case 2) and 128 (case 3).
@pytest.mark.parametrize(("low", "high"), [(-4.44, 5.76), (-5.12, 5.08)], ids=["asymmetric", "symmetric"])
def test_fixed_and_any_shape_round_to_the_same_integers(low: float, high: float) -> None:
    model = quantized(low, high)
    before, plain = run(model, fixed=False), operators(model)
    assert count_moved(model) > 0
    assert set_unit_scales(model) == 1
    assert count_moved(model) == 0
    assert operators(model) == plain  # the scale that was there takes the factor
    # The same integers but for ties: a step of .04 times a weight of up to .6. With the zero point 127, the float sums round otherwise.
    difference = np.abs(run(model, fixed=False) - before)
    assert np.quantile(difference, 0.99) < 1e-4
    assert difference.max() < 0.04 * 0.6 * 2


def test_activation_without_a_scale_gets_one_per_channel() -> None:
    model = quantized(-4.44, 5.76, smoothed=False)
    before = run(model, fixed=False)
    assert set_unit_scales(model) == 1
    scale = next(node for node in model.get_ops() if node.get_friendly_name() == "fq/scale").input_value(1).get_node()
    np.testing.assert_allclose(scale.data, np.full((1, 1, WIDTH), 1 / 0.04), rtol=1e-6)
    assert np.quantile(np.abs(run(model, fixed=False) - before), 0.99) < 1e-4


def test_quantizer_that_runs_inside_a_product_stays() -> None:
    x = opset13.parameter([1, -1, WIDTH], ov.Type.f32, name="x")
    product = opset13.matmul(x, opset13.constant(WEIGHTS.astype(np.float32)), False, True)
    biased = opset13.gelu(opset13.add(product, opset13.constant(np.ones(OUTPUTS, dtype=np.float32))), "erf")
    bounds = [opset13.constant(np.float32(bound)) for bound in (-4.44, 5.76, -4.44, 5.76)]
    model = ov.Model([opset13.result(opset13.fake_quantize(biased, *bounds, levels=256))], [x], "fused")
    before = operators(model)
    assert set_unit_scales(model) == 0
    assert operators(model) == before


def embeddings(*, types: NDArray[Any]) -> ov.Model:
    """(word + token type) + position, as BERT adds them."""
    ids = opset13.parameter([1, -1], ov.Type.i64, name="ids")
    axis = opset13.constant(np.int64(0))
    word, position = (opset13.gather(opset13.constant(GENERATOR.random((9, 4), dtype=np.float32)), ids, axis) for _ in range(2))
    total = opset13.add(opset13.add(word, opset13.constant(types)), position)
    return ov.Model([opset13.result(total)], [ids], "embeddings")


def test_token_types_join_the_table_of_positions() -> None:
    model = embeddings(types=np.ones((1, 1, 4), dtype=np.float32))
    ids = np.arange(9)[None]
    before = ov.Core().compile_model(model, "CPU")([ids])[0].copy()
    assert fold_token_types(model)
    assert operators(model).count("Add") == 1
    np.testing.assert_allclose(ov.Core().compile_model(model, "CPU")([ids])[0], before, rtol=1e-6)


def test_a_row_for_each_token_is_no_token_type() -> None:
    model = embeddings(types=np.ones((1, 9, 4), dtype=np.float32))
    assert not fold_token_types(model)
    assert operators(model).count("Add") == 2
