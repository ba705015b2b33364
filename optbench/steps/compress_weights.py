"""Weights of an OpenVINO graph's linear layers to 8 or 4 bits, with activations quantized at run time.

NNCF rounds; int4 has further ways, because rounding to nearest costs most there. all-MiniLM-L6-v2, 99 product queries, 64 product
titles to calibrate, weights alone (activations in float32), cosine to fp32 as mean / minimum by group:

    int4_sym             32               64               128
    nearest              -                .9691 / .9501    .9594 / .9320
    scale_estimation     -                .9756 / .9550    -
    nncf_gptq            -                .9858 / .9706    -
    gptq                 .9901 / .9752    .9881 / .9738    .9850 / .9694    256 titles, group 64: .9896 / .9809
    int8_asym            .9998 / .9996

Activations in int8 with the group chosen by `auto` take the int8_asym to .9988 / .9977 and the int4 ones down by .001 at most.
`gptq` is optbench's own, in gptq.py; a 24-layer body of 1024 takes it 100 CPU-seconds, and scale estimation 115.

Embedding tables stay as they are: `compress_tables` is for them.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optbench.artifact.folder import Artifact, Kind, copy_companions
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.model.checkpoint import read_body
from optbench.steps.base import BaseStep, Refusal, StepContext, StepReport
from optbench.steps.calibration.samples import CalibrationInput, calibration_inputs
from optbench.steps.openvino.gptq import round_graph
from optbench.steps.openvino.graph import (
    FLOATS,
    WeightMatMul,
    constant_behind,
    find_weight_matmuls,
    match_names,
    quiet_nncf,
    read_graph,
    save_graph,
    transpose_weights,
)

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["DYNAMIC_GROUP", "CompressWeights", "choose_dynamic_group"]

DYNAMIC_GROUP = ("runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
"""Path in the IR's rt_info that OpenVINO reads the group from."""

MATMULS_PER_LAYER = 6  # query, key, value, attention output, and two of the feed-forward block
# OpenVINO's CPU plugin takes no other group: it quantizes activations a vector register at a time.
DYNAMIC_GROUP_STEP = 16
# int8 weights, BERT-large body, 2 threads, a busy machine, median ms at 8 / 16 / 64 tokens: group 32 18.4 / 24.0 / 78,
# 128 14.7 / 19.0 / 61, 256 13.0 / 18.4 / 66, 1024 13.2 / 20.3 / 70. Larger than 256 buys nothing and costs accuracy
# (all-MiniLM-L6-v2, least cosine: 128 .998, 384 .993).
AUTO_GROUP_MAX = 256

CALIBRATED = frozenset({"awq", "scale_estimation", "nncf_gptq", "gptq"})


def choose_dynamic_group(widths: Collection[int]) -> int:
    """The group for `auto`: the largest power of two up to 256 that OpenVINO applies to every layer at full speed.

    A group that does not divide a layer's int4 group is silently ignored there, as is one above K; one that merely fails
    to divide K leaves a slow remainder (K = 384: group 256 0.81 ms, 128 0.63). All seen on OpenVINO 2026.4. Of what divides,
    groups between powers of two gain nothing worth their accuracy (192 0.65 ms, 96 0.62, 64 0.62).

    Args:
        widths: of each compressed layer, the input channels that share a weight scale: the int4 group, or K.

    Returns:
        0, which turns dynamic quantization off, where no group fits.
    """
    divisor = math.gcd(*widths)
    power = min(divisor & -divisor, AUTO_GROUP_MAX)
    return power if power >= DYNAMIC_GROUP_STEP else 0


class CompressWeights(BaseStep):
    """Round the weights of an OpenVINO graph's linear layers to int8 or int4; the activations follow at run time."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("nncf", "openvino", "tokenizers", "numpy", "scipy")

    step: Literal["compress_weights"] = "compress_weights"
    weights: Literal["int8_sym", "int8_asym", "int4_sym", "int4_asym"] = Field(
        description="int8 has a scale for each output; asymmetric has a zero point beside it."
    )
    group_size: int | None = Field(
        default=None, ge=16, le=4096, description="Input channels that share an int4 scale; must divide every layer's K. 128 if left out."
    )
    method: Literal["nearest", "awq", "scale_estimation", "nncf_gptq", "gptq"] = Field(
        default="nearest", description="How int4 weights are rounded; all but nearest read calibration texts."
    )
    damping: float = Field(default=0.05, gt=0, le=1, description="gptq: share of the mean second moment added to each.")
    ratio: float = Field(default=1.0, gt=0, le=1, description="Share of the weights in int4; the most sensitive ones go to `backup`.")
    all_layers: bool = Field(default=True, description="int4 for the last layer too; an encoder has no vocabulary head to spare.")
    backup: Literal["int8_asym", "int8_sym", "none"] = Field(default="int8_asym", description="What weights outside `ratio` get.")
    exclude: tuple[str, ...] = Field(
        default=(), description="Patterns (*, ?) on module, MatMul or weight names to leave alone: `*.layer.0.output.dense`."
    )
    expect: int | None = Field(
        default=None, ge=1, description="How many MatMuls must be compressed; if left out, 6 for each layer less the excluded ones."
    )
    samples: int = Field(default=64, ge=1, le=10_000, description="Calibration texts to draw; more help gptq.")
    seed: int = Field(default=0, ge=0, description="Which texts are drawn.")
    dynamic_quantization_group: Literal["auto", "off"] | int = Field(
        default="auto",
        description="Input channels that share a run-time int8 scale; auto: the largest power of two up to 256 that every layer honors.",
    )

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]  # it depends on the method here
        """Whether the method reads texts."""
        return self.method in CALIBRATED

    @property
    def _group(self) -> int:
        """Input channels that share a weight scale; 0 for all of them."""
        return (self.group_size or 128) if self.weights.startswith("int4") else 0

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        # By value and not by what was written: a step's own JSON spells out every default, and must read back.
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.weights.startswith("int8"):
            set_anyway = sorted({"group_size", "method", "damping", "ratio", "all_layers", "backup"} & changed)
            if set_anyway:
                raise ValueError(
                    f"{', '.join(set_anyway)}: for int4 weights only; {self.weights} has a scale for each output: leave it out"
                )
        if self.method == "gptq" and (self.weights != "int4_sym" or self.ratio != 1 or not self.all_layers):
            raise ValueError("method gptq rounds every layer to int4_sym; for other settings use method nncf_gptq")
        if self.method != "gptq" and "damping" in changed:
            raise ValueError("damping: for method gptq only; leave it out")
        if self.backup == "none" and (self.ratio < 1 or not self.all_layers) and self.expect is None:
            raise ValueError("backup none leaves MatMuls uncompressed; say in expect how many must be compressed")
        group = self.dynamic_quantization_group
        if isinstance(group, int) and (group < DYNAMIC_GROUP_STEP or group % DYNAMIC_GROUP_STEP):
            raise ValueError(f"dynamic_quantization_group {group}: OpenVINO takes multiples of {DYNAMIC_GROUP_STEP}; or auto, or off")
        return self

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Compress `source` to `out/openvino/openvino_model.xml` and `.bin`.

        Raises:
            StepError: a pattern matches nothing, fewer MatMuls than expected were compressed, a group does not divide a
                layer's K, calibration texts are missing, or NNCF refuses the graph.
            MachineError: the disk is full.
        """
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
        wanted = self.expect if self.expect is not None else MATMULS_PER_LAYER * read_body(source.path).layers - len(left)
        self._check_count(source, len(chosen), wanted, refused)
        self._check_groups(chosen)
        group = self._dynamic_group(chosen)
        inputs: list[CalibrationInput] = []
        if self.needs_calibration:
            where = f"{source.main_file} compress_weights (method {self.method})"
            inputs = calibration_inputs(source.path, context.calibration_texts, self.samples, self.seed, where)

        warnings: list[str] = []
        if self.method == "gptq":
            round_graph(
                model,
                chosen,
                inputs,
                group=self._group,
                damping=self.damping,
                threads=context.machine.usable_threads,
                progress=lambda share: context.progress("rounding the weights", share),
            )
        else:
            rewritten = transpose_weights(matmuls)
            # Nothing may hold on to the source's weights any longer.
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
        self._check_count(source, compressed.total(), wanted, refused)
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

    def _check_count(self, source: Artifact, found: int, wanted: int, refused: Sequence[Refusal]) -> None:
        if found >= wanted:
            return
        reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in refused) or "the graph holds no other weight MatMuls"
        raise StepError(
            f"{source.main_file}: compress_weights finds {found} MatMuls to compress, {wanted} are expected. Left alone: {reasons}. "
            f"If that is meant (packed query, key and value, say), set expect: {found}"
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
        # Layers that `ratio` leaves to int8 take an int4 layer's group as well: it divides their K.
        widths = {self._group or matmul.inputs for matmul in chosen}
        if self.dynamic_quantization_group == "auto":
            return choose_dynamic_group(widths)
        wanted = self.dynamic_quantization_group
        if any(width % wanted for width in widths):
            raise StepError(
                f"compress_weights: dynamic_quantization_group {wanted} does not divide the input channels that share a weight scale "
                f"({', '.join(map(str, sorted(widths)))}), and OpenVINO would silently ignore it or run slower; "
                f"use a multiple of {DYNAMIC_GROUP_STEP} that divides {math.gcd(*widths)}, or auto"
            )
        return wanted

    def _round_nncf(self, model: "ov.Model", left: Sequence[str], inputs: Sequence[CalibrationInput]) -> list[str]:
        """Have NNCF round every weight MatMul but those `left`; gives back its warnings."""
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
            # NNCF raises RuntimeError and ValueError of many kinds, and its own.
            except Exception as error:
                raise StepError(
                    f"compress_weights: NNCF cannot apply {self.method} to {self.weights}: {error}; use another method"
                ) from error
        if any("No matching patterns were found for applying AWQ" in message for message in messages):
            raise StepError(
                "compress_weights: awq finds none of its patterns in this graph and would change nothing; use scale_estimation or gptq"
            )
        return [message for message in messages if message.startswith("WARNING")]


def _map_from(model: "ov.Model", scratch: Path) -> "ov.Model":
    """Write a graph to the scratch folder and read it back: its weights are then mapped from there, not held in memory."""
    import openvino as ov

    save_graph(model, scratch)
    return ov.Core().read_model(scratch / Kind.OPENVINO.main_file)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _weight_elements(model: "ov.Model") -> dict[str, str]:
    """The element type that each weight MatMul's constant is kept in, by the MatMul's name: `i4`, `u8`, `f32`."""
    elements: dict[str, str] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            constant, _ = constant_behind(node.input_value(1))
            if constant is not None:
                elements[node.get_friendly_name()] = constant.get_element_type().get_type_name()
    return elements
