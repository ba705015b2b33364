"""SmoothQuant: move the outliers of an activation's channels into the weights that read it, which are easier to quantize.

    y = x W  =  (x / s) (diag(s) W),   one s > 0 for each input channel

Source: Xiao et al. 2022, arXiv:2211.10438, eq. 4: s_j = max|x_j|^a / max|W_j|^(1 - a). The bounds are NNCF's.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optbench.steps.calibration.samples import CalibrationInput
from optbench.steps.openvino.graph import WeightMatMul

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["observe_maxima", "smooth", "smoothing_scale"]

# A channel that is zero on all calibration texts still needs a finite scale.
MAXIMUM_FLOOR = 1e-5
# Channels with small values share the scale of the smallest tenth: smaller scales would only push their weights below one step.
QUIET_QUANTILE = 0.1
SCALE_MAX = 100.0
# NNCF places the quantizer after a multiplication with this in its name, not before it.
MULTIPLY_SUFFIX = "nncf_smooth_quant"


def smoothing_scale(activation_maxima: NDArray[np.float32], weight_maxima: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    """The divisor of each input channel, (in,), positive and at most 100.

    Args:
        activation_maxima: (in,), the largest magnitude seen in each channel.
        weight_maxima: (in,), the largest magnitude in each weight row that reads the channel.
        alpha: how much of the range moves to the weights, 0..1.
    """
    seen = np.maximum(activation_maxima, MAXIMUM_FLOOR).astype(np.float64)
    held = np.maximum(weight_maxima, MAXIMUM_FLOOR).astype(np.float64)
    scale = seen**alpha / held ** (1 - alpha)
    return np.clip(scale, min(float(np.quantile(scale, QUIET_QUANTILE)), SCALE_MAX), SCALE_MAX).astype(np.float32)


def observe_maxima(
    model: "ov.Model",
    groups: Sequence[Sequence[WeightMatMul]],
    inputs: Sequence[CalibrationInput],
    threads: int,
    tick: Callable[[int], None],
) -> list[NDArray[np.float32]]:
    """Run the graph in float32 and record the largest magnitude, (in,), of each channel of the activations that groups read.

    `groups` are from `group_by_activation`; `tick` is called with the number of inputs done.
    """
    import openvino as ov
    from openvino import opset13 as opset

    results = []
    for readers in groups:
        activation = readers[0].node.input_value(0)
        axes = opset.constant(list(range(activation.get_partial_shape().rank.get_length() - 1)), dtype=np.int64)
        # Reduced in the engine: the output is a row for each activation, not the activation.
        results.append(opset.result(opset.reduce_max(opset.abs(activation), axes, keep_dims=False)))
    observed = ov.Model(results, model.get_parameters(), "observed")
    compiled = ov.Core().compile_model(observed, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads})
    maxima = [np.zeros(readers[0].inputs, dtype=np.float32) for readers in groups]
    names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    request = compiled.create_infer_request()
    for done, entry in enumerate(inputs):
        request.infer([entry[name] for name in names], share_inputs=True)
        for index, maximum in enumerate(maxima):
            np.maximum(maximum, request.get_output_tensor(index).data, out=maximum)
        tick(done + 1)
    return maxima


def smooth(groups: Sequence[Sequence[WeightMatMul]], maxima: Sequence[NDArray[np.float32]], alpha: float) -> None:
    """Divide each group's activation by its scale and multiply the scale into its weights; the products do not change.

    The weights become float32 constants of their own.
    """
    import openvino as ov
    from openvino import opset13 as opset

    for readers, maximum in zip(groups, maxima, strict=True):
        largest = np.max([_row_maxima(matmul) for matmul in readers], axis=0)
        scale = smoothing_scale(maximum, largest, alpha)
        activation = readers[0].node.input_value(0)
        divisor = opset.constant(np.float32(1) / scale.reshape([1] * (activation.get_partial_shape().rank.get_length() - 1) + [-1]))
        name = f"{activation.get_node().get_friendly_name()}_{activation.get_index()}/{MULTIPLY_SUFFIX}"
        divisor.set_friendly_name(f"{name}/scale")
        smoothed = opset.multiply(activation, divisor, name=name)
        for matmul in readers:
            weight = matmul.constant.get_data(dtype=np.float32)
            tensor = ov.Tensor(ov.Type.f32, ov.Shape(list(weight.shape)))
            np.multiply(weight, scale if matmul.transposed else scale[:, None], out=tensor.data)
            constant = ov.op.Constant(tensor, shared_memory=True)
            constant.set_friendly_name(matmul.constant.get_friendly_name())
            matmul.node.input(0).replace_source_output(smoothed.output(0))
            matmul.node.input(1).replace_source_output(constant.output(0))


def _row_maxima(matmul: WeightMatMul) -> NDArray[np.float32]:
    """The largest magnitude among the weights that read each input channel, (in,)."""
    weight, axis = matmul.constant.get_data(dtype=np.float32), 0 if matmul.transposed else 1
    largest: NDArray[np.float32] = np.maximum(weight.max(axis=axis), -weight.min(axis=axis)).astype(np.float32)
    return largest
