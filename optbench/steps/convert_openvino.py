"""Write an ONNX artifact as OpenVINO IR with the same input and output names.

OpenVINO 2026.4 reads the standard operators and most of ONNX Runtime's own: Attention and MultiHeadAttention with key masks,
SkipLayerNormalization, EmbedLayerNormalization, BiasGelu, FastGelu, QuickGelu, FusedMatMul, MatMulNBits, DynamicQuantizeMatMul and
MatMulIntegerToFloat. It has no rule for QAttention, among others: such a graph is refused by name.
"""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.engines.contract import INPUTS, OUTPUTS
from optbench.engines.openvino import STATIC_LENGTHS, STATIC_LENGTHS_MAX
from optbench.errors import MachineError, StepError
from optbench.machine.disk import free_disk
from optbench.model.checkpoint import read_max_tokens
from optbench.steps.base import BaseStep, StepContext, StepReport
from optbench.steps.openvino.rounding import fold_token_types

if TYPE_CHECKING:
    import openvino as ov

__all__ = ["ConvertOpenvino"]

NO_RULE = re.compile(r"No conversion rule found for operations?: *(?P<names>[^\n]+)")


class ConvertOpenvino(BaseStep):
    """Convert an ONNX artifact to OpenVINO IR, and name the lengths an engine may compile for.

    The embeddings do not change, unless the weights are stored as fp16.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.ONNX})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    pace: ClassVar[tuple[float, float]] = (0.3, 1.2)

    step: Literal["convert_openvino"] = "convert_openvino"
    static_lengths: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=STATIC_LENGTHS_MAX,
        description="Token lengths, ascending: the engine compiles a graph for each, and pads slightly shorter texts to it.",
    )
    compress_to_fp16: bool = Field(
        default=False, description="Store the weights as fp16: half the file size, computed in the engine's precision."
    )

    @field_validator("static_lengths")
    @classmethod
    def _check_ascending(cls, lengths: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if lengths is not None and (lengths[0] < 1 or any(later <= earlier for earlier, later in pairwise(lengths))):
            raise ValueError(f"{list(lengths)}: expected distinct lengths of at least 1 in ascending order")
        return lengths

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Convert `source` to `out/openvino/openvino_model.xml` and `.bin`."""
        longest = read_max_tokens(source.path)
        if self.static_lengths is not None and self.static_lengths[-1] > longest:
            raise StepError(
                f"convert_openvino: static_lengths goes up to {self.static_lengths[-1]} tokens, "
                f"but {source.path} takes at most {longest}: remove the longer ones"
            )
        free_disk(out, source.size_bytes, "the OpenVINO model")
        foreign = _foreign_operators(source.main_file)
        context.progress("reading the ONNX graph", None)
        model = _read(source.main_file, foreign)
        fold_token_types(model)
        _renumber(model)
        if self.static_lengths is not None:
            model.set_rt_info(" ".join(map(str, self.static_lengths)), list(STATIC_LENGTHS))
        context.progress("writing the OpenVINO model", None)
        _write(model, out / Kind.OPENVINO.main_file, compress_to_fp16=self.compress_to_fp16)
        copy_companions(source.path, out)
        operators = Counter(operator.get_type_name() for operator in model.get_ops())
        return StepReport(
            matched={name: operators[name] for name in ("MatMul", "MVN", "Gelu", "Softmax") if operators[name]},
            facts={"operators": operators.total(), "foreign_operators": dict(foreign)},
        )


def _foreign_operators(path: Path) -> Counter[str]:
    """Count the operators outside ONNX's own domain: `{"com.microsoft.BiasGelu": 24}`.

    A file that is not an ONNX model is refused: OpenVINO would try all its other frontends, which write to stderr.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise StepError(f"{path}: cannot be read as ONNX ({error}); the file may be truncated: make the artifact again") from error
    if not graph.output:
        raise StepError(f"{path}: an ONNX model without outputs; the file may be truncated: make the artifact again")
    return Counter(f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in ("", "ai.onnx"))


def _read(path: Path, foreign: Counter[str]) -> "ov.Model":
    import openvino as ov

    try:
        model = ov.Core().read_model(path)
    except RuntimeError as error:
        if without_rule := NO_RULE.search(str(error)):
            names = [name.strip() for name in without_rule["names"].split(",")]
            listed = ", ".join(f"{foreign[name]} {name}" if foreign[name] else name for name in names)
            raise StepError(
                f"{path}: OpenVINO has no rule for {listed}; remove the fusion or quantization step that creates them, "
                "or measure this artifact with onnxruntime"
            ) from error
        reason = str(error).strip().splitlines()[-1]
        raise StepError(
            f"{path}: OpenVINO cannot read it: {reason}; it or its model.onnx_data is broken: make the artifact again"
        ) from error
    names = [port.get_any_name() for port in (*model.inputs, *model.outputs)]
    expected = [*INPUTS, *OUTPUTS]
    if names != expected:
        raise StepError(f"{path}: has inputs and outputs {', '.join(names)}, not {', '.join(expected)}; export it with export_onnx")
    return model


def _renumber(model: "ov.Model") -> None:
    """Number unnamed nodes by their place in the graph.

    OpenVINO numbers them in the order of creation in the process, so the same graph would not always give the same bytes.
    """
    for place, operator in enumerate(model.get_ordered_ops()):
        kind = operator.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", operator.get_friendly_name()):
            operator.set_friendly_name(f"{kind}_{place}")


def _write(model: "ov.Model", path: Path, *, compress_to_fp16: bool) -> None:
    import openvino as ov

    try:
        path.parent.mkdir()
        ov.save_model(model, path, compress_to_fp16=compress_to_fp16)
    except (OSError, RuntimeError) as error:
        raise MachineError(f"{path}: cannot be written: {error}; free some space and run again") from error
