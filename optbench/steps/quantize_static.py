"""Static int8 on OpenVINO: NNCF places the quantizers and sets their ranges from texts that run through the graph.

SmoothQuant is done here and not by NNCF, whose own holds the body's weights three times: a model of 1.34 GB then peaks at
5.3 GB. Here the smoothed graph goes to the scratch folder and is mapped back, and the peak is that of calibration. Embedding
tables take no part in any product and stay as they are: `compress_tables` is for them.
"""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optbench.artifact import Artifact, Kind, copy_companions
from optbench.errors import StepError
from optbench.machine import free_disk
from optbench.steps.base import BaseStep, Refusal, StepContext, StepReport
from optbench.steps.calibration import CalibrationInput, calibration_inputs
from optbench.steps.openvino_graph import (
    constant_behind,
    find_weight_matmuls,
    match_names,
    quiet_nncf,
    read_graph,
    save_graph,
)
from optbench.steps.smoothing import group_by_activation, observe_maxima, smooth

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["QuantizeStatic"]


class QuantizeStatic(BaseStep):
    """Quantize weights and activations of an OpenVINO graph to int8, the activations' ranges fixed by calibration."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("nncf", "openvino", "tokenizers", "numpy")
    needs_calibration: ClassVar[bool] = True

    step: Literal["quantize_static"] = "quantize_static"
    samples: int = Field(default=64, ge=1, le=10_000, description="Calibration texts to draw.")
    seed: int = Field(default=0, ge=0, description="Which texts are drawn.")
    smooth_quant_alpha: float | None = Field(default=0.95, ge=0, le=1, description="SmoothQuant's share for the weights; null for none.")
    preset: Literal["mixed", "performance"] = Field(
        default="mixed", description="mixed: activations with a zero point; performance: symmetric throughout."
    )
    bias_correction: bool = Field(default=True, description="Shift biases by the mean error that rounding brings (NNCF's fast form).")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) on module, node or weight names to leave in float.")
    expect: int | None = Field(default=None, ge=1, description="How many weight MatMuls must be quantized; all not excluded if left out.")

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Quantize `source` into `out`.

        Raises:
            StepError: no calibration texts, a pattern that matches nothing, or fewer MatMuls quantized than expected.
        """
        where = f"{source.main_file} {self.step}"
        free_disk(out, 2 * source.size_bytes, "the smoothed and the quantized model")
        inputs = calibration_inputs(source.path, context.calibration_texts, self.samples, self.seed, where)
        model = read_graph(source)
        matmuls, refused = find_weight_matmuls(model)
        named = [matmul.names for matmul in matmuls]
        excluded = [names for names, hit in zip(named, match_names(named, self.exclude, f"{where} exclude"), strict=True) if hit]
        del model, matmuls
        groups = 0
        graph = source.main_file
        if self.smooth_quant_alpha is not None:
            graph, groups = context.scratch / "smoothed.xml", self._write_smoothed(source, excluded, inputs, context)
            gc.collect()
        quantized = self._quantize(graph, [names[1] for names in excluded], inputs, context)
        context.progress("writing the model", None)
        save_graph(quantized, out)
        copy_companions(source.path, out)
        return StepReport(refused=tuple(refused), facts={"smoothed": groups})

    def _write_smoothed(self, source: Artifact, excluded: list[tuple[str, ...]], inputs: list[CalibrationInput], context: StepContext) -> int:
        """Write the smoothed graph to the scratch folder; its weights are in memory here and nowhere else.

        Returns:
            How many activations were smoothed.
        """
        import openvino as ov

        model = read_graph(source)
        groups = group_by_activation(matmul for matmul in find_weight_matmuls(model)[0] if matmul.names not in excluded)
        maxima = observe_maxima(
            model,
            groups,
            inputs,
            context.machine.usable_threads,
            lambda done: context.progress("observing activations", done / len(inputs)),
        )
        context.progress("smoothing weights", None)
        smooth(groups, maxima, self.smooth_quant_alpha or 0.0)
        ov.save_model(model, context.scratch / "smoothed.xml", compress_to_fp16=False)
        return len(groups)

    def _quantize(self, graph: Path, excluded: list[str], inputs: list[CalibrationInput], context: StepContext) -> "ov.Model":
        import openvino as ov

        model = ov.Core().read_model(graph)
        tables = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
        context.progress("calibrating", None)
        with quiet_nncf() as (nncf, _):
            parameters = nncf.AdvancedQuantizationParameters(
                disable_bias_correction=not self.bias_correction,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            )
            return nncf.quantize(
                model,
                nncf.Dataset(inputs),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset(self.preset),
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=[*excluded, *tables]),
                advanced_parameters=parameters,
            )
