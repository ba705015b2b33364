"""What the two int8 steps on ONNX graphs share: the options for weights and tables, and writing the rewritten graph."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.steps.base import BaseStep, ReduceRange, StepContext, StepReport

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from optbench.machine.cpu import Machine
    from optbench.steps.onnx.weights import Selection, WeightProduct

__all__ = ["OnnxQuantizer"]


class OnnxQuantizer(BaseStep, ABC):
    """Rounds the weights of an ONNX graph's linear layers to 8 bits; subclasses quantize the activations."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    gives: ClassVar[Kind] = Kind.ONNX

    per_channel: bool = Field(default=True, description="One scale per output column instead of one per weight.")
    reduce_range: ReduceRange = "auto"
    exclude: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) on node or weight names to leave in float.")
    expect: int | None = Field(default=None, ge=1, description="Least number of quantized products; if left out, all that hold a weight.")
    tables: Literal["fp32", "fp16", "int8"] = Field(
        default="fp32", description="How embedding tables are stored; int8 has a scale per row."
    )

    def reduces_range(self, machine: Machine, weight_type: Literal["int8", "uint8"]) -> bool:
        """Whether weights take 7 bits on that machine."""
        if self.reduce_range == "auto":
            # U8U8 products are widened before they are summed, so they cannot overflow on any CPU.
            return weight_type == "int8" and not machine.has_vnni
        return self.reduce_range

    def round_weight(
        self,
        graph: ir.Graph,
        product: WeightProduct,
        reduce_range: bool,
        weight_type: Literal["int8", "uint8"] = "int8",
        divisor: NDArray[np.float32] | None = None,
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """The initializers of a weight's values, scale and zero point, once its input channels are multiplied by `divisor`."""
        from optbench.steps.onnx.weights import quantize_columns, release, store_columns, weight_array

        name = str(product.weight.name)
        columns = quantize_columns(
            weight_array(product) if divisor is None else weight_array(product) * divisor[:, None],
            name,
            weight_type=weight_type,
            per_channel=self.per_channel,
            reduce_range=reduce_range,
        )
        release(product)
        return store_columns(graph, name, columns)

    def write(
        self, model: ir.Model, source: Artifact, out: Path, selection: Selection, facts: dict[str, JsonValue], context: StepContext
    ) -> StepReport:
        """Compress the tables of a rewritten graph, write it with the source's companions, and report."""
        from optbench.steps.onnx.file import write_onnx
        from optbench.steps.onnx.weights import compress_tables, remove_unused

        tables = compress_tables(model, self.tables)
        context.progress("writing the model", None)
        remove_unused(model)
        write_onnx(model, out)
        copy_companions(source.path, out)
        return StepReport(
            matched={"MatMul": len(selection.products)} | ({"Gather": tables} if tables else {}),
            refused=selection.refused,
            facts={**facts, "excluded": selection.excluded},
        )
