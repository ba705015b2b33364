"""Static int8 on OpenVINO: NNCF places the quantizers and sets their ranges from texts that run through the graph.

SmoothQuant is implemented here because NNCF's holds the body's weights three times: a 1.34 GB model then peaks at 5.3 GB. Here the
smoothed graph is written to the scratch folder and mapped back, so the peak is that of calibration. Embedding tables, which take
part in no product, are not changed: use `compress_tables` for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError, StepError
from optbench.machine.disk import free_disk
from optbench.steps.base import (
    HOSTILE_SAMPLES,
    BaseStep,
    CalibrationTexts,
    HostileSamples,
    Input,
    ReduceRange,
    Refusal,
    StepContext,
    StepReport,
)
from optbench.steps.openvino.graph import constant_behind, find_weight_matmuls, group_by_activation, quiet_nncf, read_graph, save_graph
from optbench.steps.openvino.rounding import set_unit_scales
from optbench.steps.patterns import match_names

if TYPE_CHECKING:
    import openvino as ov

    from optbench.machine.cpu import Machine
    from optbench.steps.calibration.samples import CalibrationInput

__all__ = ["QuantizeStatic"]


class QuantizeStatic(BaseStep):
    """Quantize weights and activations of an OpenVINO graph to int8, with activation ranges from calibration."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 4
    libraries: ClassVar[tuple[str, ...]] = ("nncf", "openvino", "tokenizers", "numpy")
    pace: ClassVar[tuple[float, float]] = (2.0, 10.0)

    step: Literal["quantize_static"] = "quantize_static"
    samples: int = Field(default=64, ge=1, le=10_000, description="Number of calibration texts; each is run twice.")
    hostile_samples: HostileSamples = HOSTILE_SAMPLES
    seed: int = Field(default=0, ge=0, description="Random seed for drawing texts.")
    # Strengths compared: bench/LOG.md, Q4 and Q10.
    smooth_quant_alpha: float | None = Field(default=0.75, ge=0, le=1, description="SmoothQuant's alpha; null turns it off.")
    ranges: Literal["minmax", "mean_minmax"] = Field(
        default="minmax", description="An activation's range: the extremes over all texts, or the mean of each text's extremes."
    )
    preset: Literal["mixed", "performance"] = Field(
        default="mixed", description="mixed: a zero point for activations of both signs; performance: symmetric throughout."
    )
    reduce_range: ReduceRange = "auto"
    # Off because it changes next to nothing: bench/LOG.md, Q4.
    bias_correction: bool = Field(default=False, description="Correct biases by the mean rounding error (NNCF's fast bias correction).")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) on module, node or weight names to leave in float.")
    expect: int | None = Field(
        default=None, ge=1, description="Least number of quantized weight MatMuls; if left out, all that are not excluded."
    )

    def inputs(self) -> tuple[Input[Any], ...]:
        """Calibration texts."""
        return (CalibrationTexts(),)

    def machine_warnings(self, machine: Machine) -> tuple[str, ...]:
        """What keeps OpenVINO's static int8 below this CPU's best speed."""
        from optbench.engines.onednn import is_off_amx

        if is_off_amx(machine):
            return ("OpenVINO's int8 was kept off AMX, where it is broken for inputs of any length (its issue 37577)",)
        if not machine.has_vnni:
            return ("this CPU has no VNNI: with OpenVINO, int8 gains little on it or costs time",)
        return ()

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Quantize `source` into `out`."""
        from optbench.steps.calibration.samples import calibration_inputs

        where = f"{source.main_file} {self.step}"
        inputs = calibration_inputs(
            source.path, context.need(CalibrationTexts), self.samples, self.seed, where, hostile=self.hostile_samples
        )
        free_disk(out, 2 * source.size_bytes, "the smoothed and the quantized model")
        scope = self._scope(source, where)
        graph, smoothed = source.main_file, 0
        if self.smooth_quant_alpha is not None:
            graph, smoothed = self._write_smoothed(source, scope, inputs, context)
        reduce_range = not context.machine.has_vnni if self.reduce_range == "auto" else self.reduce_range
        quantized = self._quantize(graph, scope, inputs, reduce_range, context)
        matched, refused = self._count(quantized, scope, where)
        set_unit_scales(quantized)
        context.progress("writing the model", None)
        save_graph(quantized, out)
        copy_companions(source.path, out)
        lengths = [entry["input_ids"].shape[1] for entry in inputs]
        return StepReport(
            matched=matched,
            refused=refused,
            facts={
                "smoothed": smoothed,
                "reduce_range": reduce_range,
                "calibration_texts": len(inputs),
                "hostile_texts": self.hostile_samples,
                "calibration_tokens": sum(lengths),
                "longest_text_tokens": lengths[-1],
            },
        )

    def _scope(self, source: Artifact, where: str) -> _Scope:
        matmuls, refused = find_weight_matmuls(read_graph(source))
        named = [matmul.names for matmul in matmuls] + [(refusal.node,) for refusal in refused]
        hits = match_names(named, self.exclude, f"{where} exclude")
        modules = {matmul.node.get_friendly_name(): matmul.module for matmul in matmuls}
        excluded = {name for name, hit in zip(modules, hits, strict=False) if hit}
        unfit = tuple(refusal for refusal, hit in zip(refused, hits[len(matmuls) :], strict=True) if not hit)
        scope = _Scope(modules, frozenset(excluded), unfit)
        self._check_expected(len(modules) - len(excluded), "can be", scope, unfit, where)  # before minutes of calibration
        return scope

    def _check_expected(self, count: int, verb: str, scope: _Scope, refused: Sequence[Refusal], where: str) -> None:
        """Refuse fewer weight MatMuls than expected, or none."""
        expected = max(len(scope.modules) - len(scope.excluded) + len(scope.unfit) if self.expect is None else self.expect, 1)
        if count < expected:
            reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in refused) or "none, the graph holds no more"
            raise StepError(
                f"{where}: {count} weight MatMuls {verb} quantized, {expected} are expected; left alone: {reasons}; "
                "exclude them by name, set expect, or correct the step before"
            )

    def _write_smoothed(self, source: Artifact, scope: _Scope, inputs: list[CalibrationInput], context: StepContext) -> tuple[Path, int]:
        """Write the smoothed graph to the scratch folder: only here are its weights in memory.

        Returns:
            The graph's path, and the number of smoothed activations.
        """
        import openvino as ov

        from optbench.steps.calibration.smoothing import observe_maxima, smooth

        model = read_graph(source)
        matmuls = find_weight_matmuls(model)[0]
        groups = group_by_activation(matmul for matmul in matmuls if matmul.node.get_friendly_name() not in scope.excluded)
        threads = context.machine.usable_threads
        maxima = observe_maxima(model, groups, inputs, threads, lambda done: context.progress("observing activations", done / len(inputs)))
        context.progress("smoothing weights", None)
        smooth(groups, maxima, self.smooth_quant_alpha or 0.0)
        path = context.scratch / "smoothed.xml"
        try:
            ov.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:
            raise MachineError(f"{path}: the smoothed model cannot be written; free some space and run again") from error
        return path, len(groups)

    def _quantize(self, graph: Path, scope: _Scope, inputs: list[CalibrationInput], reduce_range: bool, context: StepContext) -> ov.Model:
        import openvino as ov

        model = ov.Core().read_model(graph)
        tables = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
        context.progress("calibrating", None)
        with quiet_nncf() as (nncf, _):
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            parameters = nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE,
                disable_bias_correction=not self.bias_correction,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                activations_range_estimator_params=getattr(RangeEstimatorParametersSet, self.ranges.upper()),
            )
            return nncf.quantize(
                model,
                nncf.Dataset(inputs),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset(self.preset),
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=[*sorted(scope.excluded), *tables]),
                advanced_parameters=parameters,
            )

    def _count(self, quantized: ov.Model, scope: _Scope, where: str) -> tuple[dict[str, int], tuple[Refusal, ...]]:
        """Count what NNCF quantized, and refuse a graph in which it quantized less than expected."""
        weights, activations = 0, 0
        refused = list(scope.unfit)
        for node in quantized.get_ordered_ops():
            if node.get_type_name() != "MatMul":
                continue
            name = node.get_friendly_name()
            integer = _comes_quantized(node.input_value(0)) and _comes_quantized(node.input_value(1))
            if name in scope.modules:
                weights += integer
                if not integer:
                    reason = "named by exclude" if name in scope.excluded else "NNCF placed no quantizer on both of its inputs"
                    refused.append(Refusal(rule="weight_matmul", node=scope.modules[name], reason=reason))
            else:
                activations += integer
        self._check_expected(weights, "were", scope, refused, where)
        return {"MatMul": weights, "MatMul of two activations": activations}, tuple(refused)


@dataclass(frozen=True)
class _Scope:
    """What to quantize.

    Attributes:
        modules: the module of each weight MatMul, by the MatMul's name.
        excluded: names of MatMuls to leave in float.
        unfit: places with a weight that are not excluded and cannot be quantized.
    """

    modules: dict[str, str]
    excluded: frozenset[str]
    unfit: tuple[Refusal, ...]


def _comes_quantized(value: ov.Output) -> bool:
    """Whether a MatMul's input is rounded by a FakeQuantize, possibly before a change of layout, or stored as 8 bits."""
    node = value.get_node()
    while node.get_type_name() in ("Reshape", "Transpose", "Unsqueeze", "Squeeze"):
        node = node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        return True
    constant, _ = constant_behind(value)
    return constant is not None and constant.get_element_type().get_type_name() in ("i8", "u8")
