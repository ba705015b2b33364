"""Embedding tables of an OpenVINO graph: finding them, rounding their rows, and replacing them by compressed ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from optbench.errors import StepError
from optbench.steps.base import Refusal
from optbench.steps.openvino.graph import FLOATS, constant_behind

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["EmbeddingTable", "QuantizedRows", "find_tables", "quantize_table_rows", "replace_table"]

Form = Literal["int8_asym", "int8_sym", "fp16"]

# 4096 rows of 1024 are 16 MB: no second copy of the table is held.
BLOCK_ROWS = 4096
# Below it a float16 scale is subnormal and loses digits; rows with finer steps use this one.
SCALE_MIN = 6.2e-5
# Every form passes through float16; int8 does when OpenVINO multiplies by the scale.
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a table in 8 bits: a weight is (value - zero_point) * scale.

    Attributes:
        values: (rows, width) uint8, or int8 where symmetric.
        zero_points: (rows, 1) uint8; None where symmetric.
        scales: (rows, 1) float16, weight units per step; 1 for an all-zero row.
    """

    values: NDArray[np.uint8] | NDArray[np.int8]
    zero_points: NDArray[np.uint8] | None
    scales: NDArray[np.float16]


def quantize_table_rows(rows: NDArray[np.float32], *, symmetric: bool) -> QuantizedRows:
    """Round each row of a finite matrix to 8 bits.

    Symmetric rows have values in [-127, 127] and no zero point; others have their own range, widened to include 0.

    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1.
    """
    low = np.minimum(rows.min(axis=1, keepdims=True), 0)
    high = np.maximum(rows.max(axis=1, keepdims=True), 0)
    steps = np.maximum(-low, high) / 127 if symmetric else (high - low) / 255
    steps = np.where(high == low, 1, np.maximum(steps, SCALE_MIN))
    scales = steps.astype(np.float16)
    # Values are divided by the rounded scale, because it is the one they will be multiplied by.
    steps = scales.astype(np.float32)
    values = np.rint(rows / steps)
    if symmetric:
        return QuantizedRows(np.clip(values, -127, 127).astype(np.int8), None, scales)
    zero_points = np.clip(np.rint(-low / steps), 0, 255)
    return QuantizedRows(np.clip(values + zero_points, 0, 255).astype(np.uint8), zero_points.astype(np.uint8), scales)


@dataclass(frozen=True)
class EmbeddingTable:
    """A floating-point matrix, (rows, width), and the lookups that read it."""

    constant: "ov.Node"
    readers: tuple["ov.Input", ...]
    rows: int
    width: int

    @property
    def name(self) -> str:
        """The constant's name."""
        name: str = self.constant.get_friendly_name()
        return name

    @property
    def size_bytes(self) -> int:
        """Bytes of the constant."""
        return int(self.constant.get_byte_size())


def find_tables(model: "ov.Model") -> tuple[list[EmbeddingTable], list[Refusal]]:
    """The floating-point matrices whose rows are looked up, and the constants that are looked up otherwise, each with the reason."""
    tables: dict[str, EmbeddingTable] = {}
    refused: dict[str, Refusal] = {}
    for gather in model.get_ordered_ops():
        if gather.get_type_name() != "Gather":
            continue
        constant, way = constant_behind(gather.input_value(0))
        # Lookups in shapes and other integers are not embeddings.
        if constant is None or (not way and constant.get_element_type().get_type_name() not in FLOATS):
            continue
        axis, _ = constant_behind(gather.input_value(2))
        name = constant.get_friendly_name()
        holder = way[-1] if way else constant
        readers = tuple(holder.output(0).get_target_inputs())
        reason = None
        if constant.get_element_type().get_type_name() not in FLOATS:
            reason = f"it is {constant.get_element_type().get_type_name()}: it is compressed already"
        elif [node.get_type_name() for node in way] not in ([], ["Convert"]) or (way and len(constant.output(0).get_target_inputs()) > 1):
            reason = f"its values pass through {' and '.join(node.get_type_name() for node in way)}"
        elif len(constant.get_output_shape(0)) != 2 or axis is None or int(axis.data.reshape(-1)[0]) != 0:
            reason = "it is not a matrix whose rows are looked up"
        elif any(reader.get_node().get_type_name() != "Gather" or reader.get_index() != 0 for reader in readers):
            reason = "something other than a lookup reads it too"
        if reason is not None:
            refused[name] = Refusal(rule="embedding_table", node=name, reason=reason)
        else:
            rows, width = constant.get_output_shape(0)
            tables[name] = EmbeddingTable(constant, readers, int(rows), int(width))
    return list(tables.values()), list(refused.values())


def _read_rows(table: EmbeddingTable, begin: int) -> NDArray[np.float32]:
    rows = np.asarray(table.constant.data[begin : begin + BLOCK_ROWS], dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise StepError(
            f"compress_tables: {table.name} has a NaN or infinity in row {begin + int(finite.argmin())}; download the model again"
        )
    largest = float(np.abs(rows).max())
    if largest > FLOAT16_MAX:
        raise StepError(f"compress_tables: {table.name} holds {largest:g}, above float16's {FLOAT16_MAX:g}; exclude it")
    return rows


def replace_table(table: EmbeddingTable, form: Form) -> int:
    """Replace a table by a compressed one; returns its size in bytes."""
    import openvino as ov
    from openvino import opset13

    def constant(element: ov.Type, shape: Sequence[int], suffix: str = "") -> tuple[ov.Node, NDArray[np.generic]]:
        tensor = ov.Tensor(element, ov.Shape(shape))
        node = ov.op.Constant(tensor, shared_memory=True)
        node.set_friendly_name(table.name + suffix)
        return node, tensor.data

    blocks = range(0, table.rows, BLOCK_ROWS)
    if form == "fp16":
        values, data = constant(ov.Type.f16, [table.rows, table.width])
        for begin in blocks:
            data[begin : begin + BLOCK_ROWS] = _read_rows(table, begin)
        weights, size = values, int(values.get_byte_size())
    else:
        symmetric = form == "int8_sym"
        values, data = constant(ov.Type.i8 if symmetric else ov.Type.u8, [table.rows, table.width])
        scales, scale_data = constant(ov.Type.f16, [table.rows, 1], "/scale")
        zeros, zero_data = constant(ov.Type.u8, [table.rows, 1], "/zero_point")
        for begin in blocks:
            block = slice(begin, begin + BLOCK_ROWS)
            rounded = quantize_table_rows(_read_rows(table, begin), symmetric=symmetric)
            data[block], scale_data[block] = rounded.values, rounded.scales
            if rounded.zero_points is not None:
                zero_data[block] = rounded.zero_points
        weights = opset13.convert(values, "f16", name=f"{table.name}/convert")
        size = int(values.get_byte_size() + scales.get_byte_size())
        if not symmetric:
            zeros_f16 = opset13.convert(zeros, "f16", name=f"{table.name}/zero_point/convert")
            weights = opset13.subtract(weights, zeros_f16, name=f"{table.name}/shifted")
            size += int(zeros.get_byte_size())
        weights = opset13.multiply(weights, scales, name=f"{table.name}/dequantized")
    # OpenVINO moves this chain after the lookup, so that it computes only the rows in use.
    wide = opset13.convert(weights, "f32", name=f"{table.name}/table")
    for reader in table.readers:
        reader.replace_source_output(wide.output(0))
    return size
