"""Dynamic int8 on ONNX Runtime: weights are rounded here, activations at run time by each batch's own range.

The rewrite is that of ONNX Runtime's quantizer, and its engine fuses it to DynamicQuantizeMatMul and MatMulIntegerToFloat:

    MatMul(x, w)  ->  q, s, z = DynamicQuantizeLinear(x)            one for all products that read x
                      Mul(Cast(MatMulInteger(q, w8, z, z8)), Mul(s, s8))

It works tensor by tensor: ONNX Runtime's own `quantize_dynamic` holds three copies of a 2.3 GB model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact
from optbench.machine.disk import free_disk
from optbench.steps.base import StepContext, StepReport
from optbench.steps.onnx.quantizer import OnnxQuantizer

if TYPE_CHECKING:
    import onnx_ir as ir

    from optbench.steps.onnx.weights import WeightProduct

__all__ = ["QuantizeDynamic"]


class QuantizeDynamic(OnnxQuantizer):
    """Round the weights of an ONNX graph's linear layers to 8 bits, and quantize their activations at run time."""

    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir", "numpy")

    step: Literal["quantize_dynamic"] = "quantize_dynamic"
    weight_type: Literal["int8", "uint8"] = Field(default="int8", description="int8 is symmetric; uint8 has a zero point.")

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Quantize `source` into `out`."""
        from optbench.steps.onnx.file import read_onnx
        from optbench.steps.onnx.weights import select_products

        reduce_range = self.reduces_range(context.machine, self.weight_type)
        free_disk(out, source.size_bytes, "the quantized model")
        model = read_onnx(source)
        selection = select_products(model, self.exclude, self.expect, f"{source.main_file} {self.step}")
        rounded: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value | None]] = {}
        activations: dict[ir.Value, ir.Node] = {}
        for done, product in enumerate(selection.products):
            context.progress("rounding weights", done / len(selection.products))
            if product.weight not in rounded:
                rounded[product.weight] = self.round_weight(model.graph, product, reduce_range, self.weight_type)
            _rewrite(model.graph, product, rounded[product.weight], activations)
        facts: dict[str, JsonValue] = {"reduce_range": reduce_range, "weights": len(rounded), "activations": len(activations)}
        return self.write(model, source, out, selection, facts, context)


def _rewrite(
    graph: ir.Graph,
    product: WeightProduct,
    weight: tuple[ir.Value, ir.Value, ir.Value | None],
    activations: dict[ir.Value, ir.Node],
) -> None:
    """Replace a MatMul by the integer product; `activations` holds the quantizations that products of the same input share."""
    import onnx_ir as ir

    node, values = product.node, weight[0]
    added: list[ir.Node] = []
    if product.activation not in activations:
        activations[product.activation] = ir.node(
            "DynamicQuantizeLinear", [product.activation], num_outputs=3, name=f"{product.activation.name}_quantize"
        )
        added.append(activations[product.activation])
    quantized, scale, zero_point = activations[product.activation].outputs
    integer = ir.node(
        "MatMulInteger", [quantized, values, zero_point] + ([weight[2]] if weight[2] is not None else []), name=f"{node.name}_quant"
    )
    cast = ir.node("Cast", [integer.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}_cast")
    scales = ir.node("Mul", [scale, weight[1]], name=f"{node.name}_scales")
    product_node = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{node.name}_rescaled")
    added += [integer, cast, scales, product_node]
    ir.convenience.replace_nodes_and_values(graph, node, [node], added, node.outputs, product_node.outputs)
