"""gptq: factors, scales, codes, moments from a graph, and the int4 form that OpenVINO takes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from openvino import opset13

from optbench.errors import StepError
from optbench.steps.openvino.gptq import (
    GptqSettings,
    RoundedWeight,
    collect_second_moments,
    factor_second_moments,
    input_groups,
    round_graph,
    round_weight,
    write_int4,
)
from optbench.steps.openvino.graph import find_weight_matmuls

INPUTS, OUTPUTS, GROUP = 64, 24, 16


def correlated_rows(generator: np.random.Generator, count: int, width: int = INPUTS) -> NDArray[np.float32]:
    """Rows whose channels go together, as a transformer's do: that is what GPTQ lives on."""
    mixing = generator.standard_normal((width // 4, width)) + 0.1 * generator.standard_normal((1, width))
    rows = generator.standard_normal((count, width // 4)) @ mixing + 0.1 * generator.standard_normal((count, width))
    return np.asarray(rows, dtype=np.float32)


def two_layers(generator: np.random.Generator) -> ov.Model:
    """relu(x A) B and x C: three weight MatMuls, two of which read the same activation."""
    x = opset13.parameter([-1, INPUTS], ov.Type.f32, name="x")
    weights = [np.asarray(generator.standard_normal((INPUTS, INPUTS)) / 8, dtype=np.float32) for _ in range(3)]
    a, b, c = (opset13.constant(weight, name=name) for name, weight in zip("abc", weights, strict=True))
    hidden = opset13.relu(opset13.matmul(x, a, False, False, name="A"), name="hidden")
    second = opset13.matmul(hidden, b, False, False, name="B")
    return ov.Model([opset13.result(second), opset13.result(opset13.matmul(x, c, False, False, name="C"))], [x], "two")


def dequantize(rounded: RoundedWeight) -> NDArray[np.float32]:
    """The weights that the codes encode, (inputs, outputs)."""
    group = len(rounded.codes) // len(rounded.scales)
    return rounded.codes.astype(np.float32) * np.repeat(rounded.scales.astype(np.float32), group, axis=0)


def infer(model: ov.Model, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"})
    return np.array(compiled([rows])[0], dtype=np.float32)


def test_factor_squares_to_the_inverse_of_the_damped_moments() -> None:
    rows = correlated_rows(np.random.default_rng(0), 500)
    moments = rows.T @ rows
    factor = factor_second_moments(moments, 0.05)
    damped = moments.astype(np.float64) + 0.05 * np.diag(moments).mean() * np.eye(INPUTS)
    assert not np.tril(factor, -1).any()
    # float32 rounds the factor by 6e-8 of its size; the damped moments' condition number is below 1e4.
    np.testing.assert_allclose(factor.T.astype(np.float64) @ factor @ damped, np.eye(INPUTS), atol=2e-3)


def test_channel_that_is_always_zero_is_factored_all_the_same() -> None:
    rows = correlated_rows(np.random.default_rng(0), 500)
    rows[:, 3] = 0
    assert np.isfinite(factor_second_moments(rows.T @ rows, 0.05)).all()
    assert np.isfinite(factor_second_moments(np.zeros((4, 4), dtype=np.float32), 0.05)).all()


def test_moments_that_are_not_finite_are_one_clear_error() -> None:
    moments = np.full((4, 4), np.nan, dtype=np.float32)
    with pytest.raises(StepError, match=r"second moments of 4 input channels cannot be factored with damping 0\.05; raise damping"):
        factor_second_moments(moments, 0.05)


@given(weight=arrays(np.float32, (32, 3), elements=st.floats(-100, 100, width=32)))
@settings(max_examples=50, deadline=None)
def test_with_uncorrelated_channels_each_weight_is_within_half_a_step_or_clipped(weight: NDArray[np.float32]) -> None:
    rounded = round_weight(weight, np.eye(32, dtype=np.float32), 16)
    steps = np.repeat(np.abs(rounded.scales.astype(np.float32)), 16, axis=0)
    clipped = (rounded.codes == -8) | (rounded.codes == 7)
    error = np.abs(dequantize(rounded) - weight)
    # One part in 1e6 for the division in float32.
    assert (error <= steps * (0.5 + 1e-6 * np.abs(rounded.codes) + 1e-6) + 1e-6)[~clipped].all()


def test_largest_weight_of_a_group_lies_on_minus_eight_or_is_clipped_to_it() -> None:
    weight = np.random.default_rng(1).standard_normal((16, 40)).astype(np.float32)
    rounded = round_weight(weight, np.eye(16, dtype=np.float32), 16)
    largest = np.abs(weight).argmax(axis=0)
    assert (rounded.codes[largest, np.arange(40)] == -8).all()
    assert (np.sign(rounded.scales[0]) == -np.sign(weight[largest, np.arange(40)])).all()


def test_zero_group_keeps_scale_one_and_codes_zero() -> None:
    rounded = round_weight(np.zeros((16, 2), dtype=np.float32), np.eye(16, dtype=np.float32), 16)
    assert (rounded.scales == 1).all()
    assert not rounded.codes.any()


def test_rounding_leaves_the_weight_given_to_it_unchanged() -> None:
    weight = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
    before = weight.copy()
    round_weight(weight, np.eye(32, dtype=np.float32), 16)
    np.testing.assert_array_equal(weight, before)


def test_output_error_is_below_half_of_that_of_rounding_each_weight_alone() -> None:
    generator = np.random.default_rng(2)
    rows = correlated_rows(generator, 2000)
    weight = generator.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    alone = round_weight(weight, np.eye(INPUTS, dtype=np.float32), GROUP)
    together = round_weight(weight, factor_second_moments(rows.T @ rows, 0.05), GROUP)
    errors = [np.square(rows @ (dequantize(rounded) - weight)).sum() for rounded in (alone, together)]
    # 64 channels that span 16 dimensions leave most of each error to be made up for; 0.5 is far from what is reached.
    assert errors[1] < 0.5 * errors[0]


def test_written_int4_layer_computes_with_the_weights_that_the_codes_stand_for() -> None:
    generator = np.random.default_rng(3)
    model = two_layers(generator)
    matmul = next(matmul for matmul in find_weight_matmuls(model)[0] if matmul.module == "B")
    codes = generator.integers(-8, 8, (INPUTS, INPUTS)).astype(np.int8)
    scales = (generator.choice([-1, 1], (INPUTS // GROUP, INPUTS)) * 0.01).astype(np.float16)
    rounded = RoundedWeight(codes, scales)
    rows = correlated_rows(generator, 5)
    a = next(matmul.constant.data for matmul in find_weight_matmuls(model)[0] if matmul.module == "A")
    expected = np.maximum(rows @ a, 0) @ dequantize(rounded)
    write_int4(matmul, rounded)
    # 64 products of order 1 each way, summed in another order in float32, and code * scale is rounded to float16 (2^-11).
    np.testing.assert_allclose(infer(model, rows), expected, atol=np.abs(expected).max() * 2**-10)


def test_moments_are_the_outer_products_of_what_each_layer_reads() -> None:
    generator = np.random.default_rng(4)
    model = two_layers(generator)
    rows = correlated_rows(generator, 700)
    a = next(matmul.constant.data for matmul in find_weight_matmuls(model)[0] if matmul.module == "A")
    hidden = np.maximum(rows @ a, 0)
    passes = list(input_groups(find_weight_matmuls(model)[0], 10**9))
    assert [sorted(matmul.module for matmul in readers) for readers in passes[0]] == [["A", "C"], ["B"]]
    batches = [{"x": rows[begin : begin + 100]} for begin in range(0, 700, 100)]  # more tokens than are stacked at a time
    with ThreadPoolExecutor(2) as pool:
        moments = collect_second_moments(model, passes[0], batches, pool, 2)  # type: ignore[arg-type]  # floats here, ids there
    # 700 products summed in another order in float32.
    np.testing.assert_allclose(moments[0], rows.T @ rows, atol=np.abs(rows.T @ rows).max() * 1e-5)
    np.testing.assert_allclose(moments[1], hidden.T @ hidden, atol=np.abs(hidden.T @ hidden).max() * 1e-5)


def test_passes_keep_to_the_budget_and_to_the_order_of_the_graph() -> None:
    matmuls = find_weight_matmuls(two_layers(np.random.default_rng(5)))[0]
    passes = list(input_groups(matmuls, INPUTS * INPUTS * 4))  # one activation a pass
    assert [[sorted(matmul.module for matmul in readers) for readers in groups] for groups in passes] == [[["A", "C"]], [["B"]]]


def test_graph_is_rounded_to_the_same_weights_on_one_thread_and_on_two() -> None:
    results = []
    for threads in (1, 2):
        generator = np.random.default_rng(6)
        model = two_layers(generator)
        rows = correlated_rows(generator, 40)
        shares: list[float] = []
        matmuls = find_weight_matmuls(model)[0]
        round_graph(
            model,
            matmuls,
            [{"x": rows}],  # type: ignore[dict-item]  # floats here, ids in a text encoder
            GptqSettings(group=GROUP, damping=0.05, threads=threads),
            shares.append,
        )
        assert shares[-1] == 1
        assert find_weight_matmuls(model)[0] == []
        results.append(infer(model, rows))
    np.testing.assert_array_equal(results[0], results[1])


def test_moments_that_cannot_be_factored_name_the_module() -> None:
    model = two_layers(np.random.default_rng(7))
    rows = np.full((3, INPUTS), np.nan, dtype=np.float32)
    with pytest.raises(StepError, match=r"[AC]: gptq: the second moments"):
        round_graph(
            model,
            find_weight_matmuls(model)[0],
            [{"x": rows}],  # type: ignore[dict-item]  # floats here, ids in a text encoder
            GptqSettings(group=GROUP, damping=0.05, threads=1),
            lambda share: None,
        )
