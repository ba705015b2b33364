"""Static int8 in ONNX's QDQ form, which ONNX Runtime runs as MatMulIntegerToFloat and other engines read too.

    MatMul(x, w)  ->  MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(w8))

with x smoothed first, `Mul(x, 1 / s)`, where SmoothQuant is on. Products that read the same activation share its quantizer. Outputs
stay in float: ONNX Runtime's own `quantize_static` rounds them too, which costs accuracy and a node each. It also holds several
copies of the model; here the calibration run maps the weights, and they are rounded one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.steps.base import HOSTILE_SAMPLES, CalibrationTexts, HostileSamples, Input, StepContext, StepReport
from optbench.steps.onnx.quantizer import OnnxQuantizer

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from optbench.steps.calibration.samples import CalibrationInput
    from optbench.steps.onnx.ranges import ActivationScale
    from optbench.steps.onnx.weights import WeightProduct

__all__ = ["QuantizeStaticQdq"]


class QuantizeStaticQdq(OnnxQuantizer):
    """Quantize the linear layers of an ONNX graph to int8, with activation ranges from calibration."""

    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir", "onnxruntime", "tokenizers", "numpy")

    step: Literal["quantize_static_qdq"] = "quantize_static_qdq"
    samples: int = Field(default=64, ge=1, le=10_000, description="Number of calibration texts.")
    hostile_samples: HostileSamples = HOSTILE_SAMPLES
    seed: int = Field(default=0, ge=0, description="Random seed for drawing texts.")
    smooth_quant_alpha: float | None = Field(default=0.75, ge=0, le=1, description="SmoothQuant's alpha; null turns it off.")
    method: Literal["minmax", "percentile", "entropy"] = Field(default="minmax", description="How an activation's range is chosen.")
    percentile: float = Field(default=99.99, gt=50, le=100, description="For method percentile: percent of the values inside the range.")
    symmetric_activations: bool = Field(default=False, description="Ranges symmetric around 0, zero point 128.")

    def inputs(self) -> tuple[Input[Any], ...]:
        """Calibration texts."""
        return (CalibrationTexts(),)

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Quantize `source` into `out`."""
        from optbench.steps.calibration.samples import calibration_inputs
        from optbench.steps.onnx.file import read_onnx
        from optbench.steps.onnx.weights import select_products

        where = f"{source.main_file} {self.step}"
        inputs = calibration_inputs(
            source.path, context.need(CalibrationTexts), self.samples, self.seed, where, hostile=self.hostile_samples
        )
        free_disk(out, source.size_bytes, "the quantized model")
        model = read_onnx(source)
        selection = select_products(model, self.exclude, self.expect, where)
        groups: dict[ir.Value, list[WeightProduct]] = {}
        for product in selection.products:
            groups.setdefault(product.activation, []).append(product)
        divisors, scales = self._calibrate(source, model, groups, inputs, context)
        reduce_range = self.reduces_range(context.machine, "int8")
        for done, (activation, products) in enumerate(groups.items()):
            context.progress("rounding weights", done / len(groups))
            self._rewrite(model.graph, activation, products, divisors[done], scales[done], reduce_range)
        lengths = [entry["input_ids"].shape[1] for entry in inputs]
        facts: dict[str, JsonValue] = {
            "reduce_range": reduce_range,
            "activations": len(groups),
            "calibration_texts": len(inputs),
            "hostile_texts": self.hostile_samples,
            "calibration_tokens": sum(lengths),
            "longest_text_tokens": lengths[-1],
        }
        return self.write(model, source, out, selection, facts, context)

    def _calibrate(
        self,
        source: Artifact,
        model: ir.Model,
        groups: dict[ir.Value, list[WeightProduct]],
        inputs: list[CalibrationInput],
        context: StepContext,
    ) -> tuple[list[NDArray[np.float32] | None], list[ActivationScale]]:
        """For each activation, the divisors of its channels and its uint8 parameters after that."""
        import numpy as np

        from optbench.steps.onnx.ranges import Clipping, activation_scale, clipped_ranges, observe_extremes, open_observer

        def tick(done: int) -> None:
            context.progress("observing activations", done / len(inputs))

        session = open_observer(source, model, list(groups), context.machine.usable_threads)
        extremes = observe_extremes(session, inputs, tick)
        divisors: list[NDArray[np.float32] | None] = []
        ranges: list[tuple[float, float]] = []
        for (activation, products), seen in zip(groups.items(), extremes, strict=True):
            if not np.isfinite(seen.magnitudes).all():
                raise StepError(
                    f"{source.main_file} {self.step}: {activation.name} holds a NaN or an infinity on a calibration text; "
                    "the model is broken before this step: check the output of the step before"
                )
            divisor = self._divisor(products, seen.magnitudes)
            divisors.append(divisor)
            lowest, highest = (seen.lowest, seen.highest) if divisor is None else (seen.lowest / divisor, seen.highest / divisor)
            ranges.append((float(lowest.min()), float(highest.max())))
        if self.method != "minmax":
            clipping = Clipping(self.method, self.percentile, self.symmetric_activations)
            ranges = clipped_ranges(session, inputs, divisors, clipping, tick)
        return divisors, [activation_scale(*bounds, symmetric=self.symmetric_activations) for bounds in ranges]

    def _divisor(self, products: list[WeightProduct], magnitudes: NDArray[np.float32]) -> NDArray[np.float32] | None:
        import numpy as np

        from optbench.steps.calibration.smoothing import smoothing_scale

        if self.smooth_quant_alpha is None:
            return None
        largest = np.max([_row_maxima(product) for product in products], axis=0)
        return smoothing_scale(magnitudes, largest, self.smooth_quant_alpha)

    def _rewrite(
        self,
        graph: ir.Graph,
        activation: ir.Value,
        products: list[WeightProduct],
        divisor: NDArray[np.float32] | None,
        scale: ActivationScale,
        reduce_range: bool,
    ) -> None:
        """Quantize one activation and the weights of all products that read it."""
        import numpy as np
        import onnx_ir as ir

        from optbench.steps.onnx.weights import initializer

        first, name = products[0].node, activation.name
        added: list[ir.Node] = []
        entry = activation
        if divisor is not None:
            factor = initializer(graph, f"{name}_smooth", np.float32(1) / divisor)
            added.append(ir.node("Mul", [activation, factor], name=f"{name}_smoothed"))
            entry = added[-1].outputs[0]
        parameters = [initializer(graph, f"{name}_scale", scale.scale), initializer(graph, f"{name}_zero_point", scale.zero_point)]
        added.append(ir.node("QuantizeLinear", [entry, *parameters], name=f"{name}_quantize"))
        added.append(ir.node("DequantizeLinear", [added[-1].outputs[0], *parameters], name=f"{name}_dequantize"))
        graph.insert_before(first, added)
        for product in products:
            # A weight that several activations read is rounded for each: their divisors differ.
            values, weight_scale, _ = self.round_weight(graph, product, reduce_range, divisor=divisor)
            zeros = initializer(graph, f"{weight_scale.name}_zero_point", np.zeros(weight_scale.shape.numpy(), np.int8))  # type: ignore[union-attr]
            dequantize = ir.node("DequantizeLinear", [values, weight_scale, zeros], {"axis": 1}, name=f"{product.node.name}_weight")
            graph.insert_before(product.node, dequantize)
            product.node.replace_input_with(0, added[-1].outputs[0])
            product.node.replace_input_with(1, dequantize.outputs[0])


def _row_maxima(product: WeightProduct) -> NDArray[np.float32]:
    """The largest magnitude among the weights that read each input channel, (in,)."""
    import numpy as np

    from optbench.steps.onnx.weights import release, weight_array

    weight = weight_array(product)
    largest: NDArray[np.float32] = np.maximum(weight.max(axis=1), -weight.min(axis=1))
    del weight
    release(product)
    return largest
