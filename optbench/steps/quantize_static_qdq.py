"""Static int8 in ONNX's own QDQ form, which ONNX Runtime runs as MatMulIntegerToFloat and other engines read too.

    MatMul(x, w)  ->  MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(w8))

with x smoothed first, `Mul(x, 1 / s)`, where SmoothQuant is asked for. Products that read the same activation share its
quantizer. Outputs are left in float: ONNX Runtime's own `quantize_static` rounds them too, which costs accuracy and a node each.
It also holds the model several times over; here the calibration run maps the weights, and they are rounded one by one.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.steps.base import StepContext, StepReport
from optbench.steps.calibration.samples import CalibrationInput, calibration_inputs
from optbench.steps.calibration.smoothing import smoothing_scale
from optbench.steps.onnx.file import read_onnx
from optbench.steps.onnx.quantizer import OnnxQuantizer
from optbench.steps.onnx.ranges import ActivationScale, Method, activation_scale, clipped_ranges, observe_extremes, open_observer
from optbench.steps.onnx.weights import WeightProduct, initializer, quantize_columns, release, select_products, store_columns, weight_array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["QuantizeStaticQdq"]


class QuantizeStaticQdq(OnnxQuantizer):
    """Quantize the linear layers of an ONNX graph to int8, the activations' ranges fixed by calibration."""

    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("onnx-ir", "onnxruntime", "tokenizers", "numpy")
    needs_calibration: ClassVar[bool] = True

    step: Literal["quantize_static_qdq"] = "quantize_static_qdq"
    samples: int = Field(default=64, ge=1, le=10_000, description="Calibration texts to draw.")
    seed: int = Field(default=0, ge=0, description="Which texts are drawn.")
    smooth_quant_alpha: float | None = Field(default=0.75, ge=0, le=1, description="SmoothQuant's share for the weights; null for none.")
    method: Method = Field(default="minmax", description="How an activation's range is chosen.")
    percentile: float = Field(default=99.99, gt=50, le=100, description="Share in percent that `method: percentile` keeps.")
    symmetric_activations: bool = Field(default=False, description="Ranges symmetric around 0, zero point 128.")

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Quantize `source` into `out`.

        Raises:
            StepError: no calibration texts, fewer places than expected, a pattern that matches nothing, a weight or an
                activation that is not finite.
        """
        where = f"{source.main_file} {self.step}"
        inputs = calibration_inputs(source.path, context.calibration_texts, self.samples, self.seed, where)
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
            "calibration_tokens": sum(lengths),
            "longest_text_tokens": lengths[-1],
        }
        return self.write(model, source, out, selection, facts, context)

    def _calibrate(
        self,
        source: Artifact,
        model: "ir.Model",
        groups: dict["ir.Value", list[WeightProduct]],
        inputs: list[CalibrationInput],
        context: StepContext,
    ) -> tuple[list[NDArray[np.float32] | None], list[ActivationScale]]:
        """For each activation: what its channels are divided by, and its uint8 parameters after that."""

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
                    "the model is broken before this step: measure the step before"
                )
            divisor = self._divisor(products, seen.magnitudes)
            divisors.append(divisor)
            lowest, highest = (seen.lowest, seen.highest) if divisor is None else (seen.lowest / divisor, seen.highest / divisor)
            ranges.append((float(lowest.min()), float(highest.max())))
        if self.method != "minmax":
            ranges = clipped_ranges(session, inputs, divisors, self.method, self.percentile, self.symmetric_activations, tick)
        return divisors, [activation_scale(*bounds, symmetric=self.symmetric_activations) for bounds in ranges]

    def _divisor(self, products: list[WeightProduct], magnitudes: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if self.smooth_quant_alpha is None:
            return None
        largest = np.max([_row_maxima(product) for product in products], axis=0)
        return smoothing_scale(magnitudes, largest, self.smooth_quant_alpha)

    def _rewrite(
        self,
        graph: "ir.Graph",
        activation: "ir.Value",
        products: list[WeightProduct],
        divisor: NDArray[np.float32] | None,
        scale: ActivationScale,
        reduce_range: bool,
    ) -> None:
        """Quantize one activation and the weights of all products that read it."""
        import onnx_ir as ir

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
            columns = quantize_columns(
                # A weight that several activations read is rounded for each: their divisors differ.
                weight_array(product) if divisor is None else weight_array(product) * divisor[:, None],
                str(product.weight.name),
                per_channel=self.per_channel,
                reduce_range=reduce_range,
            )
            release(product)
            values, weight_scale, _ = store_columns(graph, str(product.weight.name), columns)
            zeros = initializer(graph, f"{weight_scale.name}_zero_point", np.zeros(weight_scale.shape.numpy(), np.int8))  # type: ignore[union-attr]
            dequantize = ir.node("DequantizeLinear", [values, weight_scale, zeros], {"axis": 1}, name=f"{product.node.name}_weight")
            graph.insert_before(product.node, dequantize)
            product.node.replace_input_with(0, added[-1].outputs[0])
            product.node.replace_input_with(1, dequantize.outputs[0])


def _row_maxima(product: WeightProduct) -> NDArray[np.float32]:
    """The largest magnitude among the weights that read each input channel, (in,)."""
    weight = weight_array(product)
    largest: NDArray[np.float32] = np.maximum(weight.max(axis=1), -weight.min(axis=1))
    del weight
    release(product)
    return largest
