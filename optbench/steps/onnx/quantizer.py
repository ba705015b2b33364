"""What the two int8 steps on ONNX graphs share: the options for weights and tables, and how the rewritten graph is written."""

from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact, Kind, copy_companions
from optbench.machine.cpu import Machine
from optbench.steps.base import BaseStep, ReduceRange, StepContext, StepReport
from optbench.steps.onnx.file import write_onnx
from optbench.steps.onnx.weights import Selection, Tables, compress_tables, remove_unused

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["OnnxQuantizer"]


class OnnxQuantizer(BaseStep, ABC):
    """Rounds the weights of an ONNX graph's linear layers to 8 bits; subclasses say what becomes of the activations."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    gives: ClassVar[Kind] = Kind.ONNX

    per_channel: bool = Field(default=True, description="A scale for each output column instead of one for the whole weight.")
    reduce_range: ReduceRange = "auto"
    exclude: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) on node or weight names to leave in float.")
    expect: int | None = Field(default=None, ge=1, description="How many products must be quantized; all that hold a weight if left out.")
    tables: Tables = Field(default="fp32", description="How embedding tables are stored; int8 has a scale for each row.")

    def reduces_range(self, machine: Machine, weight_type: Literal["int8", "uint8"]) -> bool:
        """Whether weights take 7 bits on that machine."""
        if self.reduce_range == "auto":
            # U8U8 products are widened before they are added, so they cannot overflow on any CPU.
            return weight_type == "int8" and not machine.has_vnni
        return self.reduce_range

    def write(
        self, model: "ir.Model", source: Artifact, out: Path, selection: Selection, facts: dict[str, JsonValue], context: StepContext
    ) -> StepReport:
        """Compress the tables of a rewritten graph, write it with the source's companions, and report."""
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
