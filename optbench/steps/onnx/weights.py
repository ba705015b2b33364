"""What the quantizing steps on ONNX graphs share: finding weight products, rounding their weights, reading and writing.

A *weight product* is a node that multiplies an activation by a constant. Only one form is quantized: `MatMul(x, weight)` with
`weight` a (in, out) float32 initializer, as `export_onnx` writes it. Every other place that holds a weight is refused with a
reason:

    1. MatMul(weight, x)                               the constant is the first factor
    2. MatMul(x, Transpose(weight)) and the like       constants that were not folded
    3. MatMul(x, DequantizeLinear(weight))             quantized already
    4. MatMul(x, weight), weight of 1, 3 or more axes  no column to give a scale to
    5. MatMul(x, weight), weight not float32
    6. Gemm, FusedMatMul, Attention                    operators without an integer counterpart with the same options
    7. MatMul(x, y)                                    no weight: attention's own products
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from optbench.errors import StepError
from optbench.steps.base import Refusal
from optbench.steps.patterns import match_names

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "QuantizedColumns",
    "Selection",
    "Tables",
    "WeightProduct",
    "compress_tables",
    "initializer",
    "quantize_columns",
    "release",
    "remove_unused",
    "select_products",
    "store_columns",
    "weight_array",
]

# A smaller table (token types, for example) is not worth two more nodes.
TABLE_ROWS_MIN = 256

Tables = Literal["fp32", "fp16", "int8"]
WeightType = Literal["int8", "uint8"]


@dataclass(frozen=True)
class WeightProduct:
    """A MatMul of an activation (..., in) with a float32 initializer (in, out)."""

    node: "ir.Node"
    activation: "ir.Value"
    weight: "ir.Value"

    @property
    def names(self) -> tuple[str, str]:
        """The names that a pattern may match: the node's and the weight's."""
        return str(self.node.name), str(self.weight.name)


@dataclass(frozen=True)
class Selection:
    """Which weight products a step quantizes, in the graph's order, how many `exclude` names, and the places left alone."""

    products: tuple[WeightProduct, ...]
    excluded: int
    refused: tuple[Refusal, ...]


def select_products(model: "ir.Model", exclude: Sequence[str], expect: int | None, where: str) -> Selection:
    """Find the weight products to quantize.

    Fewer than `expect` are refused with the places left alone; by default, every place that holds a weight and that no pattern of
    `exclude` names has to be one. `where` is artifact and step, for the errors.
    """
    products: list[WeightProduct] = []
    refused: list[Refusal] = []
    weights_refused = 0
    constants = _constants(model.graph)
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm", "FusedMatMul", "Attention", "QAttention"):
            continue
        found = _look_at(node, constants)
        if isinstance(found, WeightProduct):
            products.append(found)
            continue
        reason, holds_weight = found
        weights_refused += holds_weight and not any(fnmatchcase(str(node.name), pattern) for pattern in exclude)
        refused.append(Refusal(rule="weight_product", node=str(node.name), reason=reason))
    named = [product.names for product in products] + [(refusal.node,) for refusal in refused]
    hits = match_names(named, exclude, f"{where} exclude")[: len(products)]
    kept = tuple(product for product, hit in zip(products, hits, strict=True) if not hit)
    excluded = len(products) - len(kept)
    expected = len(kept) + weights_refused if expect is None else expect
    if len(kept) < expected or not kept:
        reasons = [f"{refusal.node}: {refusal.reason}" for refusal in refused if "two activations" not in refusal.reason]
        reasons += [f"{excluded} by exclude"] if excluded else []
        raise StepError(
            f"{where}: {len(kept)} weight products can be quantized, {max(expected, 1)} are expected; left alone: "
            f"{'; '.join(reasons) or 'none, the graph holds no more'}; exclude them by name, set expect, or correct the step before"
        )
    refused += [
        Refusal(rule="weight_product", node=product.names[0], reason="named by exclude")
        for product, hit in zip(products, hits, strict=True)
        if hit
    ]
    return Selection(kept, excluded, tuple(refused))


def _look_at(node: "ir.Node", constants: set["ir.Value"]) -> WeightProduct | tuple[str, bool]:
    """The node as a weight product, or the reason why it is none and whether it holds a weight; case numbers of the module."""
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None:
        return "an input is missing", False
    if node.op_type != "MatMul":  # case 6
        holds = second in constants
        return (f"a {node.op_type}; only MatMul has an integer counterpart" if holds else "multiplies two activations"), holds
    if second not in constants:
        return ("its constant is the first factor", True) if first in constants else ("multiplies two activations", False)  # cases 1, 7
    reason = _reason_to_leave(second)
    return WeightProduct(node, first, second) if reason is None else (reason, True)


def _reason_to_leave(weight: "ir.Value") -> str | None:
    """Why a constant cannot be quantized; None if it can."""
    import onnx_ir as ir

    producer = weight.producer()
    if producer is not None and producer.op_type != "Constant":
        if producer.op_type == "DequantizeLinear":
            return "its weight is quantized already"  # case 3
        return f"its weight is computed by {producer.op_type}; fold the constants first"  # case 2
    tensor = ir.convenience.get_const_tensor(weight)
    if tensor is None:
        return "its weight has no value"
    if len(tensor.shape) != 2:
        return f"its weight has {len(tensor.shape)} axes, not 2"  # case 4
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype.name.lower()}, not float"  # case 5
    return None


def _constants(graph: "ir.Graph") -> set["ir.Value"]:
    """The values computed from constants alone; the graph's nodes are in topological order, as ONNX demands."""
    known = set(graph.initializers.values())
    for node in graph:
        if node.op_type == "Constant" or (node.inputs and all(value is None or value in known for value in node.inputs)):
            known.update(node.outputs)
    return known


@dataclass(frozen=True)
class QuantizedColumns:
    """A rounded weight: `weight` is about `(values - zero_point) * scale`.

    Attributes:
        values: (in, out), int8 or uint8.
        scale: (out,) float32, or (1,) with one scale for all; weight units per step, 1.0 for an all-zero column.
        zero_point: like scale, of values' type; None for int8, whose zero is 0.
    """

    values: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | None


def quantize_columns(
    weight: NDArray[np.float32], name: str, *, weight_type: WeightType = "int8", per_channel: bool = True, reduce_range: bool = False
) -> QuantizedColumns:
    """Round a weight to 8 bits, each output column with its own scale: int8 symmetric, uint8 from minimum to maximum.

    The numbers are those of ONNX Runtime's quantizer, bit for bit.

    Args:
        weight: (in, out); a NaN or infinity is a StepError that names the tensor and the first row.
        name: for the error.
        weight_type: int8 in [-127, 127], or uint8 in [0, 255].
        per_channel: one scale per column, not one for the tensor.
        reduce_range: 7 bits ([-64, 64] or [0, 127]), so that two U8S8 products cannot overflow 16 bits on a CPU without VNNI.

    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1; ranges: onnxruntime/quantization/quant_utils.py, compute_scale_zp.
    """
    axis = 0 if per_channel else None
    lowest = np.minimum(np.atleast_1d(weight.min(axis=axis)).astype(np.float64), 0)
    highest = np.maximum(np.atleast_1d(weight.max(axis=axis)).astype(np.float64), 0)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        row = int(np.flatnonzero(~np.isfinite(weight).all(axis=1))[0])
        raise StepError(f"{name}: row {row} holds a NaN or an infinity; the weights are broken: download or make them again")
    tiny = np.finfo(np.float32).tiny
    if weight_type == "int8":
        steps = 128 if reduce_range else 254
        exact = np.maximum(-lowest, highest) * 2 / steps
        zero_point = None
        bottom, top = -128, 127
    else:
        steps = 127 if reduce_range else 255
        exact = (highest - lowest) / steps
        zero_point = np.where(exact < tiny, 0, np.round(-lowest / np.where(exact < tiny, 1, exact))).astype(np.uint8)
        bottom, top = 0, 255
    scale = np.where(exact < tiny, 1.0, exact).astype(np.float32)
    rounded = weight / scale
    np.round(rounded, out=rounded)
    if zero_point is not None:
        rounded += zero_point
    np.clip(rounded, bottom, top, out=rounded)
    return QuantizedColumns(rounded.astype(np.int8) if weight_type == "int8" else rounded.astype(np.uint8), scale, zero_point)


def weight_array(product: WeightProduct) -> NDArray[np.float32]:
    """The weight, (in, out), mapped where it is external; `release` it once the array is no longer used."""
    import onnx_ir as ir

    array: NDArray[np.float32] = ir.convenience.get_const_tensor(product.weight).numpy()  # type: ignore[union-attr]  # a weight has one
    return array


def release(product: WeightProduct) -> None:
    """Unmap a weight: each maps the whole data file, so the pages read would stay in memory."""
    import onnx_ir as ir

    tensor = product.weight.const_value
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def store_columns(graph: "ir.Graph", name: str, columns: QuantizedColumns) -> tuple["ir.Value", "ir.Value", "ir.Value | None"]:
    """Register a rounded weight, its scale and its zero point as initializers named after `name`, and return their values.

    One scale for all columns becomes a scalar, as the integer operators require.
    """
    values = initializer(graph, f"{name}_quantized", columns.values)
    scale = initializer(graph, f"{name}_scale", columns.scale if columns.scale.size > 1 else columns.scale[0])
    zero_point = columns.zero_point
    if zero_point is None:
        return values, scale, None
    return values, scale, initializer(graph, f"{name}_zero_point", zero_point if zero_point.size > 1 else zero_point[0])


def initializer(graph: "ir.Graph", name: str, array: NDArray[np.generic] | np.generic) -> "ir.Value":
    """Register a new initializer; underscores are added to a name that is taken."""
    import onnx_ir as ir

    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def compress_tables(model: "ir.Model", form: Tables) -> int:
    """Store embedding tables as fp16, or as int8 with a scale per row, and return how many.

    Lookups cost the same; disk and memory use shrink. `Gather(table, ids)` becomes `Cast(Gather(table, ids))` for fp16, and
    `Mul(Cast(Gather(table, ids)), Gather(scale, ids))` for int8. Tables of fewer than 256 rows, and tables that other nodes read too,
    are not changed.
    """
    import onnx_ir as ir

    if form == "fp32":
        return 0
    tables: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 else None
        tensor = table.const_value if table is not None and table.is_initializer() else None
        if (
            table is None
            or tensor is None
            or tensor.dtype != ir.DataType.FLOAT
            or len(tensor.shape) != 2
            or tensor.shape.numpy()[0] < TABLE_ROWS_MIN
        ):
            continue
        tables.setdefault(table, []).append(node)
    stored = 0
    for table, nodes in tables.items():
        if len(table.uses()) != len(nodes):
            continue
        scale = None
        if form == "fp16":
            values = _half_table(model.graph, table)
        else:
            values, scale = _int8_table(model.graph, table)
        for node in nodes:
            gather = ir.node("Gather", [values, node.inputs[1]], name=f"{node.name}_{form}")
            cast = ir.node("Cast", [gather.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}_cast")
            added = [gather, cast]
            if scale is not None:
                scales = ir.node("Gather", [scale, node.inputs[1]], name=f"{node.name}_scale")
                added += [scales, ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{node.name}_rescaled")]
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], added, node.outputs, added[-1].outputs)
        stored += 1
    return stored


def _half_table(graph: "ir.Graph", table: "ir.Value") -> "ir.Value":
    import onnx_ir as ir

    tensor = table.const_value
    name = f"{table.name}_fp16"

    def halve() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float16), name=name)  # type: ignore[union-attr]  # checked by the caller

    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=table.shape)
    value.const_value = ir.LazyTensor(halve, dtype=ir.DataType.FLOAT16, shape=tensor.shape, name=name)  # type: ignore[union-attr,arg-type]
    graph.register_initializer(value)
    return value


def _int8_table(graph: "ir.Graph", table: "ir.Value") -> tuple["ir.Value", "ir.Value"]:
    rows = table.const_value.numpy()  # type: ignore[union-attr]  # checked by the caller
    values = np.empty(rows.shape, np.int8)
    scale = np.empty((len(rows), 1), np.float32)
    block = 16384  # rows at a time: otherwise three copies of the table would be in memory
    for start in range(0, len(rows), block):
        columns = quantize_columns(np.ascontiguousarray(rows[start : start + block].T), str(table.name))
        values[start : start + block] = columns.values.T
        scale[start : start + block, 0] = columns.scale
    return initializer(graph, f"{table.name}_int8", values), initializer(graph, f"{table.name}_row_scale", scale)


def remove_unused(model: "ir.Model") -> None:
    """Remove nodes and initializers that nothing reads."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
