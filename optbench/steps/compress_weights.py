"""Weights of an OpenVINO graph's linear layers to 8 or 4 bits, with activations quantized at run time.

NNCF rounds; int4 has several methods, because rounding to nearest loses most there. all-MiniLM-L6-v2, 99 product queries, 64 product
titles for calibration, weights only (activations in float32), cosine to fp32 as mean / minimum, by group:

    int4_sym             32               64               128
    nearest              -                .9691 / .9501    .9594 / .9320
    scale_estimation     -                .9756 / .9550    -
    nncf_gptq            -                .9858 / .9706    -
    gptq                 .9901 / .9752    .9881 / .9738    .9850 / .9694    256 titles, group 64: .9896 / .9809
    int8_asym            .9998 / .9996

With int8 activations and the group chosen by `auto`, int8_asym drops to .9988 / .9977 and int4 by at most .001. `gptq` is optbench's
own, in gptq.py; on a 24-layer body of 1024 it takes 100 CPU seconds, scale estimation 115.

Embedding tables are not changed: use `compress_tables` for them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.model.checkpoint import read_body
from optbench.steps.base import BaseStep, CalibrationTexts, Input, Refusal, StepContext, StepReport
from optbench.steps.openvino.graph import (
    FLOATS,
    WeightMatMul,
    constant_behind,
    find_weight_matmuls,
    quiet_nncf,
    read_graph,
    save_graph,
    transpose_weights,
)
from optbench.steps.patterns import match_names

if TYPE_CHECKING:
    import openvino as ov

    from optbench.steps.calibration.samples import CalibrationInput

__all__ = ["DYNAMIC_GROUP", "CompressWeights", "choose_dynamic_group"]

DYNAMIC_GROUP = ("runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
"""Path in the IR's rt_info from which OpenVINO reads the group."""

MATMULS_PER_LAYER = 6  # query, key, value, attention output, and two of the feed-forward block
# OpenVINO's CPU plugin accepts only multiples: it quantizes activations a vector register at a time.
DYNAMIC_GROUP_STEP = 16
# int8 weights, BERT-large body, 2 threads, a busy machine, median ms at 8 / 16 / 64 tokens: group 32 18.4 / 24.0 / 78,
# 128 14.7 / 19.0 / 61, 256 13.0 / 18.4 / 66, 1024 13.2 / 20.3 / 70. Above 256 nothing is gained, and accuracy falls
# (all-MiniLM-L6-v2, minimum cosine: 128 .998, 384 .993).
AUTO_GROUP_MAX = 256

CALIBRATED = frozenset({"awq", "scale_estimation", "nncf_gptq", "gptq"})


def choose_dynamic_group(widths: Collection[int]) -> int:
    """The group for `auto`: the largest power of two up to 256 that OpenVINO applies to every layer at full speed; 0 (off) if none.

    OpenVINO 2026.4 silently ignores a group that does not divide a layer's int4 group or is above K; one that only fails to divide K
    leaves a slow remainder (K = 384: group 256 0.81 ms, 128 0.63). Divisors between powers of two gain too little speed for their
    loss of accuracy (192 0.65 ms, 96 0.62, 64 0.62).

    Args:
        widths: for each compressed layer, the input channels that share a weight scale: the int4 group, or K.
    """
    divisor = math.gcd(*widths)
    power = min(divisor & -divisor, AUTO_GROUP_MAX)
    return power if power >= DYNAMIC_GROUP_STEP else 0


class CompressWeights(BaseStep):
    """Round the weights of an OpenVINO graph's linear layers to int8 or int4; activations are quantized at run time."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("nncf", "openvino", "tokenizers", "numpy", "scipy")

    step: Literal["compress_weights"] = "compress_weights"
    weights: Literal["int8_sym", "int8_asym", "int4_sym", "int4_asym"] = Field(
        description="int8 has one scale per output; asymmetric forms have a zero point too."
    )
    group_size: int | None = Field(
        default=None, ge=16, le=4096, description="Input channels that share an int4 scale; must divide every layer's K. 128 if left out."
    )
    method: Literal["nearest", "awq", "scale_estimation", "nncf_gptq", "gptq"] = Field(
        default="nearest", description="How int4 weights are rounded; all but nearest use calibration texts."
    )
    damping: float = Field(default=0.05, gt=0, le=1, description="For method gptq: share of the mean second moment added to each.")
    ratio: float = Field(default=1.0, gt=0, le=1, description="Share of the weights in int4; the most sensitive ones use `backup`.")
    all_layers: bool = Field(default=True, description="Whether the last layer is int4 too; an encoder has no vocabulary head to protect.")
    backup: Literal["int8_asym", "int8_sym", "none"] = Field(default="int8_asym", description="Form of the weights outside `ratio`.")
    exclude: tuple[str, ...] = Field(
        default=(), description="Patterns (*, ?) on module, MatMul or weight names to leave alone: `*.layer.0.output.dense`."
    )
    expect: int | None = Field(
        default=None, ge=1, description="Least number of compressed MatMuls; if left out, 6 per layer less the excluded ones."
    )
    samples: int = Field(default=64, ge=1, le=10_000, description="Number of calibration texts; gptq gains from more.")
    seed: int = Field(default=0, ge=0, description="Random seed for drawing texts.")
    dynamic_quantization_group: Literal["auto", "off"] | int = Field(
        default="auto",
        description="Input channels that share a run-time int8 scale; auto: the largest power of two up to 256 that suits every layer.",
    )

    @property
    def _group(self) -> int:
        """Input channels that share a weight scale; 0 for all of them."""
        return (self.group_size or 128) if self.weights.startswith("int4") else 0

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        # By value, not by what the recipe sets: a step's own JSON includes every default, and must validate again.
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.weights.startswith("int8"):
            set_anyway = sorted({"group_size", "method", "damping", "ratio", "all_layers", "backup"} & changed)
            if set_anyway:
                raise ValueError(f"{', '.join(set_anyway)}: for int4 weights only; {self.weights} has one scale per output: remove it")
        if self.method == "gptq" and (self.weights != "int4_sym" or self.ratio != 1 or not self.all_layers):
            raise ValueError("method gptq rounds every layer to int4_sym; for other settings use method nncf_gptq")
        if self.method != "gptq" and "damping" in changed:
            raise ValueError("damping: for method gptq only; remove it")
        if self.backup == "none" and (self.ratio < 1 or not self.all_layers) and self.expect is None:
            raise ValueError("backup none leaves MatMuls uncompressed; set expect to the number that must be compressed")
        group = self.dynamic_quantization_group
        if isinstance(group, int) and (group < DYNAMIC_GROUP_STEP or group % DYNAMIC_GROUP_STEP):
            raise ValueError(
                f"dynamic_quantization_group {group}: OpenVINO accepts multiples of {DYNAMIC_GROUP_STEP}; use one, auto or off"
            )
        return self

    def inputs(self) -> tuple[Input[Any], ...]:
        """Calibration texts, for the methods that use them."""
        return (CalibrationTexts(),) if self.method in CALIBRATED else ()

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Compress `source` to `out/openvino/openvino_model.xml` and `.bin`."""
        from optbench.steps.calibration.samples import calibration_inputs
        from optbench.steps.openvino.gptq import GptqSettings, round_graph

        # NNCF's calibrated methods run on a transposed copy in the scratch folder.
        free_disk(out, 2 * source.size_bytes, "the compressed model")
        context.progress("reading the graph", None)
        model = read_graph(source)
        matmuls, refused = find_weight_matmuls(model)
        hits = match_names([matmul.names for matmul in matmuls], self.exclude, "compress_weights exclude")
        chosen = [matmul for matmul, hit in zip(matmuls, hits, strict=True) if not hit]
        modules = {matmul.node.get_friendly_name(): matmul.module for matmul in chosen}
        left = {matmul.node.get_friendly_name(): matmul.module for matmul, hit in zip(matmuls, hits, strict=True) if hit}
        refused += [Refusal(rule="weight_matmul", node=module, reason="exclude names it") for module in left.values()]
        expected = self.expect if self.expect is not None else MATMULS_PER_LAYER * read_body(source.path).layers - len(left)
        self._check_count(source, len(chosen), expected, refused)
        self._check_groups(chosen)
        group = self._dynamic_group(chosen)
        inputs: list[CalibrationInput] = []
        if self.method in CALIBRATED:
            where = f"{source.main_file} compress_weights (method {self.method})"
            inputs = calibration_inputs(source.path, context.need(CalibrationTexts), self.samples, self.seed, where)

        warnings: list[str] = []
        if self.method == "gptq":
            round_graph(
                model,
                chosen,
                inputs,
                GptqSettings(self._group, self.damping, context.machine.usable_threads),
                lambda share: context.progress("rounding the weights", share),
            )
        else:
            rewritten = transpose_weights(matmuls)
            # Release the source's weights.
            del matmuls, chosen
            if rewritten and inputs:
                model = _map_from(model, context.scratch)
            context.progress(f"rounding the weights ({self.method})", None)
            warnings = self._round_nncf(model, list(left), inputs)

        elements = {name: element for name, element in _weight_elements(model).items() if name in modules}
        in_float = [name for name, element in elements.items() if element in FLOATS]
        compressed = Counter(element for element in elements.values() if element not in FLOATS)
        reason = f"NNCF left it in float ({self.weights}, backup {self.backup})"
        refused += [Refusal(rule="weight_matmul", node=modules[name], reason=reason) for name in in_float]
        self._check_count(source, compressed.total(), expected, refused)
        model.set_rt_info(str(group), list(DYNAMIC_GROUP))
        context.progress("writing the graph", None)
        save_graph(model, out)
        copy_companions(source.path, out)
        return StepReport(
            matched=dict(sorted(compressed.items())),
            refused=tuple(refused),
            warnings=tuple(warnings),
            facts={
                "dynamic_quantization_group": group,
                "calibration_texts": len(inputs),
                "graph_bytes": _folder_bytes(out / Kind.OPENVINO.weight_folder),
                "source_graph_bytes": _folder_bytes(source.main_file.parent),
            },
        )

    def _check_count(self, source: Artifact, found: int, expected: int, refused: Sequence[Refusal]) -> None:
        if found >= expected:
            return
        reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in refused) or "the graph holds no other weight MatMuls"
        raise StepError(
            f"{source.main_file}: compress_weights finds {found} MatMuls to compress, {expected} are expected. Left alone: {reasons}. "
            f"If that is intended (packed query, key and value, for example), set expect: {found}"
        )

    def _check_groups(self, chosen: Sequence[WeightMatMul]) -> None:
        group = self._group
        if not group:
            return
        unfit = [f"{matmul.module} has K = {matmul.inputs}" for matmul in chosen if matmul.inputs % group]
        if unfit:
            common = math.gcd(*(matmul.inputs for matmul in chosen))
            raise StepError(
                f"compress_weights: group_size {group} does not divide K of {len(unfit)} MatMuls ({'; '.join(unfit[:4])}); "
                f"use a divisor of {common}, or exclude them"
            )

    def _dynamic_group(self, chosen: Sequence[WeightMatMul]) -> int:
        if self.dynamic_quantization_group == "off":
            return 0
        # An int4 layer's group also suits layers that `ratio` leaves in int8: it divides their K.
        widths = {self._group or matmul.inputs for matmul in chosen}
        if self.dynamic_quantization_group == "auto":
            return choose_dynamic_group(widths)
        group = self.dynamic_quantization_group
        if any(width % group for width in widths):
            raise StepError(
                f"compress_weights: dynamic_quantization_group {group} does not divide the input channels that share a weight scale "
                f"({', '.join(map(str, sorted(widths)))}), and OpenVINO would silently ignore it or run slower; "
                f"use a multiple of {DYNAMIC_GROUP_STEP} that divides {math.gcd(*widths)}, or auto"
            )
        return group

    def _round_nncf(self, model: ov.Model, left: Sequence[str], inputs: Sequence[CalibrationInput]) -> list[str]:
        """Have NNCF round every weight MatMul except those in `left`; returns its warnings."""
        with quiet_nncf() as (nncf, messages):
            options: dict[str, Any] = {}
            if self.weights.startswith("int4"):
                options = {
                    "group_size": self._group,
                    "ratio": self.ratio,
                    "all_layers": self.all_layers,
                    "backup_mode": nncf.BackupMode(self.backup),
                    "awq": self.method == "awq" or None,
                    "scale_estimation": self.method == "scale_estimation" or None,
                    "gptq": self.method == "nncf_gptq" or None,
                    "dataset": nncf.Dataset(list(inputs)) if inputs else None,
                    "subset_size": max(1, len(inputs)),
                }
            tables = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Gather"]
            try:
                nncf.compress_weights(
                    model,
                    mode=nncf.CompressWeightsMode(self.weights),
                    ignored_scope=nncf.IgnoredScope(names=[*left, *tables], validate=False),
                    **options,
                )
            # NNCF raises RuntimeError, ValueError and classes of its own.
            except Exception as error:
                raise StepError(
                    f"compress_weights: NNCF cannot apply {self.method} to {self.weights}: {error}; use another method"
                ) from error
        if any("No matching patterns were found for applying AWQ" in message for message in messages):
            raise StepError(
                "compress_weights: awq finds none of its patterns in this graph, so it would change nothing; use scale_estimation or gptq"
            )
        return [message for message in messages if message.startswith("WARNING")]


def _map_from(model: ov.Model, scratch: Path) -> ov.Model:
    """Write a graph to the scratch folder and read it back, so that its weights are mapped from there, not held in memory."""
    import openvino as ov

    save_graph(model, scratch)
    return ov.Core().read_model(scratch / Kind.OPENVINO.main_file)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _weight_elements(model: ov.Model) -> dict[str, str]:
    """The element type of each weight MatMul's constant, by the MatMul's name: `i4`, `u8`, `f32`."""
    elements: dict[str, str] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            constant, _ = constant_behind(node.input_value(1))
            if constant is not None:
                elements[node.get_friendly_name()] = constant.get_element_type().get_type_name()
    return elements
