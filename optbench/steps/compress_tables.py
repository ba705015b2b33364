"""Embedding tables of an OpenVINO graph to int8 or float16: for memory, not for speed.

OpenVINO reads a float32 table whole when it compiles a graph, and leaves a float16 or int8 one in the file, mapped, so that
only the rows that texts ask for are ever in memory. A table of 250,002 x 1024, 32 lookups (OpenVINO 2026.4):

    form    file       memory once compiled    lookup
    fp32    1,024 MB   1,006 MB                33 us
    fp16      512 MB      29 MB                36 us
    int8      257 MB      30 MB                33 us
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optbench.artifact.folder import Artifact, Kind, copy_companions
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.steps.base import BaseStep, Refusal, StepContext, StepReport
from optbench.steps.openvino.graph import FLOATS, constant_behind, match_names, read_graph, save_graph

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["CompressTables", "QuantizedRows", "quantize_table_rows"]

Form = Literal["int8_asym", "int8_sym", "fp16"]

# 4096 rows of 1024 are 16 MB: the table is never held a second time.
BLOCK_ROWS = 4096
# Below it a float16 scale is subnormal and loses digits; rows that need so fine a step are rounded to this one.
SCALE_MIN = 6.2e-5
# Every form passes through float16: the int8 ones when OpenVINO multiplies by the scale.
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
    """Round each row to 8 bits with its own range.

    Args:
        rows: (rows, width), finite.
        symmetric: values in [-127, 127] and no zero point; otherwise the row's own range, widened to hold 0.

    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1.
    """
    low = np.minimum(rows.min(axis=1, keepdims=True), 0)
    high = np.maximum(rows.max(axis=1, keepdims=True), 0)
    steps = np.maximum(-low, high) / 127 if symmetric else (high - low) / 255
    steps = np.where(high == low, 1, np.maximum(steps, SCALE_MIN))
    scales = steps.astype(np.float16)
    # The rounded scale is the one that the values will meet.
    steps = scales.astype(np.float32)
    values = np.rint(rows / steps)
    if symmetric:
        return QuantizedRows(np.clip(values, -127, 127).astype(np.int8), None, scales)
    zero_points = np.clip(np.rint(-low / steps), 0, 255)
    return QuantizedRows(np.clip(values + zero_points, 0, 255).astype(np.uint8), zero_points.astype(np.uint8), scales)


@dataclass(frozen=True)
class _Table:
    constant: "ov.Node"
    readers: tuple["ov.Input", ...]
    rows: int
    width: int

    @property
    def name(self) -> str:
        name: str = self.constant.get_friendly_name()
        return name

    @property
    def size_bytes(self) -> int:
        return int(self.constant.get_byte_size())


class CompressTables(BaseStep):
    """Store the embedding tables of an OpenVINO graph as int8, each row with its own scale, or as float16."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("openvino", "numpy")

    step: Literal["compress_tables"] = "compress_tables"
    tables: Form = Field(default="int8_asym", description="int8_asym has a zero point for each row; fp16 is exact to three digits.")
    min_bytes: int = Field(default=1_000_000, ge=0, description="Smaller tables (token types, short positions) stay as they are.")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) on table names to leave alone: `*position_embeddings*`.")
    expect: int = Field(default=1, ge=1, description="How many tables must be compressed.")

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Compress `source` to `out/openvino/openvino_model.xml` and `.bin`.

        Raises:
            StepError: a pattern matches nothing, fewer tables than expected, or a value that the form cannot hold.
            MachineError: the disk is full.
        """
        free_disk(out, source.size_bytes, "the model with compressed tables")
        context.progress("reading the graph", None)
        model = read_graph(source)
        tables, refused = _find_tables(model)
        hits = match_names([(table.name,) for table in tables], self.exclude, "compress_tables exclude")
        chosen: list[_Table] = []
        for table, hit in zip(tables, hits, strict=True):
            reason = self._reason_to_leave(table, excluded=hit)
            if reason is None:
                chosen.append(table)
            else:
                refused.append(Refusal(rule="embedding_table", node=table.name, reason=reason))
        if len(chosen) < self.expect:
            reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in refused) or "the graph looks nothing up in a constant"
            raise StepError(
                f"{source.main_file}: compress_tables finds {len(chosen)} tables to compress, {self.expect} are expected. "
                f"Left alone: {reasons}. Lower min_bytes, or take the step out"
            )
        before = after = 0
        for number, table in enumerate(chosen):
            context.progress(f"compressing {table.name}", number / len(chosen))
            before += table.size_bytes
            after += _replace(table, self.tables)
        context.progress("writing the graph", None)
        save_graph(model, out)
        copy_companions(source.path, out)
        return StepReport(
            matched={self.tables: len(chosen)}, refused=tuple(refused), facts={"table_bytes": after, "source_table_bytes": before}
        )

    def _reason_to_leave(self, table: _Table, *, excluded: bool) -> str | None:
        if excluded:
            return "exclude names it"
        if table.size_bytes < self.min_bytes:
            return f"it has {table.size_bytes} bytes, less than min_bytes"
        if self.tables == "fp16" and table.constant.get_element_type().get_type_name() == "f16":
            return "it is f16 already"
        return None


def _find_tables(model: "ov.Model") -> tuple[list[_Table], list[Refusal]]:
    """The floating-point matrices whose rows are looked up, and the lookups in a constant that are none, each with the reason."""
    tables: dict[str, _Table] = {}
    refused: dict[str, Refusal] = {}
    for gather in model.get_ordered_ops():
        if gather.get_type_name() != "Gather":
            continue
        constant, way = constant_behind(gather.input_value(0))
        # Lookups in shapes and other integers are none of an embedding's.
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
            tables[name] = _Table(constant, readers, int(rows), int(width))
    return list(tables.values()), list(refused.values())


def _read_rows(table: _Table, begin: int) -> NDArray[np.float32]:
    rows = np.asarray(table.constant.data[begin : begin + BLOCK_ROWS], dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise StepError(f"compress_tables: {table.name} has a NaN or infinity in row {begin + int(finite.argmin())}; fetch the model anew")
    largest = float(np.abs(rows).max())
    if largest > FLOAT16_MAX:
        raise StepError(f"compress_tables: {table.name} holds {largest:g}, above float16's {FLOAT16_MAX:g}; exclude it")
    return rows


def _replace(table: _Table, form: Form) -> int:
    """Put the compressed table in place; gives back its bytes."""
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
    # OpenVINO moves this chain behind the lookup, so that it touches only the rows that are asked for.
    wide = opset13.convert(weights, "f32", name=f"{table.name}/table")
    for reader in table.readers:
        reader.replace_source_output(wide.output(0))
    return size
