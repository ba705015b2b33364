"""GPTQ for the linear layers of an OpenVINO graph: int4 weights whose rounding errors cancel on real inputs.

Weights are rounded one input channel at a time, and each channel's error is spread over the channels not yet rounded, in the
proportions that keep the layer's output closest given the inputs' second moments H = sum x x'. `compress_weights` has figures for
a real model.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1, in the inputs' own order. The scale of each group is searched for the
least error, with each channel weighted by its cost in GPTQ's objective, and it is *signed*: the weight of the largest magnitude
maps to -8, so that all sixteen codes are used; a positive scale wastes one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optbench.errors import StepError
from optbench.steps.openvino.graph import WeightMatMul, group_by_activation

if TYPE_CHECKING:
    import openvino as ov

__all__ = [
    "GptqSettings",
    "RoundedWeight",
    "collect_second_moments",
    "factor_second_moments",
    "input_groups",
    "round_graph",
    "round_weight",
    "write_int4",
]

CODE_MIN, CODE_MAX = -8, 7
# Clipping points to try, as shares of the full range: below 0.6 the clipped tail costs more than finer steps save.
CLIP_SHARES = np.linspace(1.0, 0.6, 21, dtype=np.float32)
# Below it a float16 scale is subnormal and loses digits; a group this small is as good as zero.
SCALE_MIN = np.float32(6.2e-5)
# A layer of a 1024-wide body holds 76 MB of second moments: six layers a pass keep the peak below three times the weights.
MOMENTS_BYTES_MAX = 512 * 1024 * 1024
# Outer products of one short text at a time are memory-bound; 512 tokens of six such layers are 88 MB.
STACKED_TOKENS = 512

Batch = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class GptqSettings:
    """How a graph's weights are rounded.

    Attributes:
        group: input channels that share a scale; divides every MatMul's inputs.
        damping: share of the mean second moment that is added to each.
        threads: layers rounded at a time; each holds five times its second moments.
    """

    group: int
    damping: float
    threads: int


@dataclass(frozen=True)
class RoundedWeight:
    """A weight in int4.

    Attributes:
        codes: (inputs, outputs) int8 in [-8, 7].
        scales: (inputs / group, outputs) float16, weight units per step; may be negative.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]


def factor_second_moments(moments: NDArray[np.float32], damping: float) -> NDArray[np.float32]:
    """The upper triangular U with U'U = inverse of the damped second moments, (inputs, inputs).

    Damping is the share of the mean diagonal that is added to the diagonal; moments that still cannot be factored are a StepError.
    """
    from scipy.linalg import lapack

    # With J the reversal and J H J = L L', R = J L J is upper and H = R R', so U = inverse(R): no full inverse is needed.
    reversed_moments = moments[::-1, ::-1].astype(np.float64, order="F")
    diagonal = np.einsum("ii->i", reversed_moments)
    mean = float(diagonal.mean())
    # A channel that is always zero carries no information; any positive number makes the matrix invertible.
    diagonal += damping * mean if mean > 0 else 1.0
    lower, failed = lapack.dpotrf(reversed_moments, lower=1, clean=1, overwrite_a=1)
    if not failed:
        lower, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
    if failed or not np.isfinite(lower[-1, 0]):
        raise StepError(
            f"gptq: the second moments of {len(moments)} input channels cannot be factored with damping {damping}; "
            "raise damping, or give more calibration texts"
        )
    return np.ascontiguousarray(lower[::-1, ::-1], dtype=np.float32)


def _search_scale(block: NDArray[np.float32], importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """The signed scale of each column of (group, outputs) that rounds it with the least squared error, in float16 steps.

    `importance` (group,) is the cost of a squared error in each row.
    """
    peak = np.take_along_axis(block, np.abs(block).argmax(axis=0)[None], axis=0)[0]
    best = np.full(block.shape[1], np.inf, dtype=np.float32)
    scale = np.ones(block.shape[1], dtype=np.float32)
    rounded = np.empty_like(block)
    for share in CLIP_SHARES:
        candidate = (peak * share / CODE_MIN).astype(np.float16).astype(np.float32)
        candidate[np.abs(candidate) < SCALE_MIN] = 1.0
        np.divide(block, candidate, out=rounded)
        np.rint(rounded, out=rounded)
        np.clip(rounded, CODE_MIN, CODE_MAX, out=rounded)
        rounded *= candidate
        rounded -= block
        np.square(rounded, out=rounded)
        error = importance @ rounded
        better = error < best
        best[better], scale[better] = error[better], candidate[better]
    return scale


def round_weight(weight: NDArray[np.float32], factor: NDArray[np.float32], group: int) -> RoundedWeight:
    """Round a weight, (inputs, outputs) and finite, to int4.

    `factor` is from `factor_second_moments`; `group` input channels share a scale, and divides the inputs.
    """
    inputs, outputs = weight.shape
    rest = np.array(weight, dtype=np.float32, order="C")
    codes = np.empty((inputs, outputs), dtype=np.int8)
    scales = np.empty((inputs // group, outputs), dtype=np.float16)
    errors = np.empty((group, outputs), dtype=np.float32)
    for begin in range(0, inputs, group):
        end = begin + group
        block = rest[begin:end]
        # An error e in channel i costs (e / U_ii)^2 of output once the later channels have compensated for it: with this weighting
        # the worst cosine on all-MiniLM-L6-v2 is .973, with plain squared errors .962.
        scale = _search_scale(block, np.diagonal(factor)[begin:end] ** np.float32(-2))
        scales[begin // group] = scale
        for row in range(group):
            channel = begin + row
            code = np.clip(np.rint(block[row] / scale), CODE_MIN, CODE_MAX)
            codes[channel] = code
            errors[row] = (block[row] - code * scale) / factor[channel, channel]
            block[row + 1 :] -= factor[channel, channel + 1 : end, None] * errors[row]
        rest[end:] -= factor[begin:end, end:].T @ errors
    return RoundedWeight(codes, scales)


def input_groups(matmuls: Sequence[WeightMatMul], budget_bytes: int) -> Iterator[list[list[WeightMatMul]]]:
    """Split MatMuls, in the graph's order, into passes whose second moments fit a budget.

    Each pass is a list of lists of MatMuls that read the same activation (query, key and value do) and share its moments.
    """
    batch: list[list[WeightMatMul]] = []
    used = 0
    for readers in group_by_activation(matmuls):
        size = readers[0].inputs ** 2 * 4
        if batch and used + size > budget_bytes:
            yield batch
            batch, used = [], 0
        batch.append(readers)
        used += size
    if batch:
        yield batch


def collect_second_moments(
    model: "ov.Model", groups: Sequence[Sequence[WeightMatMul]], batches: Sequence[Batch], pool: Executor, threads: int
) -> list[NDArray[np.float32]]:
    """Run the graph on real inputs in float32, only up to the given activations, and sum their outer products over the tokens.

    `batches` are the graph's inputs by name, unpadded. The sums are (inputs, inputs), one for each group of `input_groups`.
    """
    import openvino as ov

    outputs = [readers[0].node.input_value(0) for readers in groups]
    # OpenVINO compiles only what the results need: later layers are neither compiled nor run.
    upto = ov.Model([ov.opset13.result(output) for output in outputs], model.get_parameters(), "upto")
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(upto, "CPU", options)
    moments = [np.zeros((readers[0].inputs, readers[0].inputs), dtype=np.float32) for readers in groups]
    rows: list[list[NDArray[np.float32]]] = [[] for _ in groups]

    def add_products(index: int) -> None:
        stacked = np.concatenate(rows[index])
        moments[index] += stacked.T @ stacked
        rows[index].clear()

    tokens = 0
    for number, batch in enumerate(batches, 1):
        results = compiled([batch[parameter.get_friendly_name()] for parameter in model.get_parameters()])
        for index, readers in enumerate(groups):
            rows[index].append(results[index].reshape(-1, readers[0].inputs).copy())
        tokens += next(iter(batch.values())).size
        if tokens >= STACKED_TOKENS or number == len(batches):
            list(pool.map(add_products, range(len(groups))))
            tokens = 0
    return moments


def round_graph(
    model: "ov.Model",
    matmuls: Sequence[WeightMatMul],
    batches: Sequence[Batch],
    settings: GptqSettings,
    progress: Callable[[float], None],
) -> None:
    """Round the weights of a graph's MatMuls, given in its order, to int4 in place.

    `batches` are the graph's inputs by name, unpadded. Second moments that cannot be factored are a StepError that names the module.
    """
    import scipy.linalg  # noqa: F401  # its BLAS must be loaded before it can be limited
    from threadpoolctl import threadpool_limits

    done = 0

    def round_readers(readers: Sequence[WeightMatMul], moments: NDArray[np.float32]) -> list[RoundedWeight]:
        try:
            factor = factor_second_moments(moments, settings.damping)
        except StepError as error:
            raise StepError(f"{readers[0].module}: {error}") from error
        rounded = []
        for matmul in readers:
            stored = matmul.constant.get_data(dtype=np.float32)
            rounded.append(round_weight(stored.T if matmul.transposed else stored, factor, settings.group))
        return rounded

    # One BLAS thread each: the products are narrow, and BLAS threads on a busy machine mostly wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(settings.threads) as pool:
        for groups in input_groups(matmuls, MOMENTS_BYTES_MAX):
            # The activations of later passes include the error of the layers rounded so far.
            moments = collect_second_moments(model, groups, batches, pool, settings.threads)
            for readers, rounded in zip(groups, pool.map(round_readers, groups, moments), strict=True):
                for matmul, weight in zip(readers, rounded, strict=True):
                    write_int4(matmul, weight)
                done += len(readers)
                progress(done / len(matmuls))
            del moments


def write_int4(matmul: WeightMatMul, rounded: RoundedWeight) -> None:
    """Replace a MatMul's floating-point weight by an int4 one, in the form that OpenVINO's compressed kernels accept."""
    import openvino as ov
    from openvino import opset13

    group = matmul.inputs // rounded.scales.shape[0]
    shape = [matmul.outputs, matmul.inputs // group, group]
    name = matmul.constant.get_friendly_name()
    # openvino.helpers.pack_data puts the first of two values into the high half of the byte; an IR wants it in the low half.
    values = opset13.constant(np.ascontiguousarray(rounded.codes.T).reshape(shape), ov.Type.i4, name=name)
    scales = opset13.constant(np.ascontiguousarray(rounded.scales.T)[..., None], ov.Type.f16, name=f"{name}/scale")
    product = opset13.multiply(opset13.convert(values, "f16", name=f"{name}/convert"), scales, name=f"{name}/dequantized")
    flat_shape = opset13.constant([matmul.outputs, matmul.inputs], ov.Type.i64, name=f"{name}/shape")
    flat = opset13.reshape(product, flat_shape, special_zero=False, name=f"{name}/flat")
    weight = opset13.convert(flat, "f32", name=f"{name}/weight")
    matmul.node.input(1).replace_source_output(weight.output(0))
    matmul.node.set_attribute("transpose_b", True)
