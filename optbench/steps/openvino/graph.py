"""What the steps on OpenVINO graphs share: reading and saving an IR, its weight MatMuls, NNCF without its noise.

A *weight MatMul* multiplies an activation by a constant: a linear layer. Attention's own products multiply two activations and do
not count. ONNX graphs store the weight as [in, out] with `transpose_b=False`; torch, NNCF and OpenVINO's compressed kernels use
[out, in] with `transpose_b=True`. Rewrite cases of `transpose_weights`, cited in its comments:

    1. MatMul(x, Constant [in, out])               -> MatMul(x, Constant [out, in], transpose_b=True)
    2. MatMul(x, Convert(Constant f16 [in, out]))  -> MatMul(x, Convert(Constant f16 [out, in]), transpose_b=True)
    3. one constant read by several MatMuls        -> one transposed constant, read by all of them
"""

import contextlib
import importlib
import io
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.steps.base import Refusal

if TYPE_CHECKING:
    import openvino as ov

__all__ = [
    "FLOATS",
    "WeightMatMul",
    "constant_behind",
    "find_weight_matmuls",
    "group_by_activation",
    "quiet_nncf",
    "read_graph",
    "save_graph",
    "transpose_weights",
]

FLOATS = ("f32", "f16", "bf16")
"""OpenVINO's names of the element types of uncompressed weights."""


def read_graph(source: Artifact) -> "ov.Model":
    """Read an artifact's IR; its weights stay in the file and are mapped."""
    import openvino as ov

    try:
        return ov.Core().read_model(source.main_file)
    except RuntimeError as error:
        raise StepError(f"{source.main_file}: OpenVINO cannot read it: {_first_line(error)}; make the artifact again") from error


def save_graph(model: "ov.Model", out: Path) -> None:
    """Write a graph as an artifact's IR, weights in their own precision, with the same bytes for the same graph in every run."""
    import openvino as ov

    nodes = model.get_ordered_ops()
    # The names of unnamed nodes contain a counter of the whole process, which differs between runs.
    unnamed = [node for node in nodes if node.get_friendly_name() == node.get_name()]
    taken = {node.get_friendly_name() for node in nodes} - {node.get_name() for node in unnamed}
    numbers = itertools.count()
    for node in unnamed:
        name = next(name for number in numbers if (name := f"{node.get_type_name()}.{number}") not in taken)
        node.set_friendly_name(name)
    path = out / Kind.OPENVINO.main_file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise StepError(f"{path}: OpenVINO cannot write it: {_first_line(error)}; free some space and run again") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(("Exception from", "Check '"))]
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class WeightMatMul:
    """A MatMul of an activation with a floating-point constant.

    Attributes:
        module: the module's name in the checkpoint (`body.encoder.layer.3.output.dense`), from the bias that is added to the
            product; the MatMul's own name where there is no such bias.
        inputs: K, the dimension that is summed over.
        outputs: N, the width of the product.
    """

    node: "ov.Node"
    constant: "ov.Node"
    module: str
    inputs: int
    outputs: int

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a pattern may match."""
        return tuple(dict.fromkeys((self.module, self.node.get_friendly_name(), self.constant.get_friendly_name())))

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as [out, in]."""
        return bool(self.node.get_attributes()["transpose_b"])


def constant_behind(output: "ov.Output") -> tuple["ov.Node | None", list["ov.Node"]]:
    """Walk from a node's input up to the constant it is computed from.

    Returns:
        The constant, or None where an activation feeds it; and the nodes in between, the one nearest to the constant last.
    """
    way: list[ov.Node] = []
    node = output.get_node()
    while node.get_type_name() != "Constant":
        # Decompression is a chain whose other inputs (scale, zero point, shape) are constants too.
        if node.get_type_name() not in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize"):
            return None, way
        way.append(node)
        node = node.input_value(0).get_node()
    return node, way


def _module_name(node: "ov.Node") -> str:
    name: str = node.get_friendly_name()
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        for port in range(2):
            bias, _ = constant_behind(readers[0].input_value(port))
            if bias is not None and bias.get_friendly_name().endswith(".bias"):
                name = bias.get_friendly_name().removesuffix(".bias")
    return name


def find_weight_matmuls(model: "ov.Model") -> tuple[list[WeightMatMul], list[Refusal]]:
    """All weight MatMuls in the graph's order, and the MatMuls with a constant that are not, each with the reason."""
    found: list[WeightMatMul] = []
    refused: list[Refusal] = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        name = _module_name(node)

        def refuse(reason: str, name: str = name) -> None:
            refused.append(Refusal(rule="weight_matmul", node=name, reason=reason))

        constant, way = constant_behind(node.input_value(1))
        if constant is None:
            if constant_behind(node.input_value(0))[0] is not None:
                refuse("its constant is the first factor, not the second")
            continue
        element = constant.get_element_type().get_type_name()
        shape = list(constant.get_output_shape(0))
        if element not in FLOATS:
            refuse(f"its weight is {element}: it is compressed already")
        elif [step.get_type_name() for step in way] not in ([], ["Convert"]):
            refuse(f"its weight passes through {' and '.join(step.get_type_name() for step in way)}")
        elif len(shape) != 2:
            refuse(f"its weight has {len(shape)} dimensions, not 2")
        elif node.get_attributes()["transpose_a"]:
            refuse("its activation is transposed")
        else:
            inputs, outputs = reversed(shape) if node.get_attributes()["transpose_b"] else shape
            found.append(WeightMatMul(node, constant, name, int(inputs), int(outputs)))
    return found, refused


def transpose_weights(matmuls: Iterable[WeightMatMul]) -> int:
    """Store every weight as [out, in] with `transpose_b=True`, one constant at a time; returns the number of rewritten MatMuls.

    NNCF 3.4 needs it: on [in, out] weights, int4 scale estimation silently returns a broken model, and GPTQ raises. The
    `WeightMatMul`s are out of date afterwards: find them again.
    """
    import numpy as np
    import openvino as ov

    replaced: dict[str, ov.Node] = {}
    count = 0
    for matmul in matmuls:
        if matmul.transposed:
            continue
        name = matmul.constant.get_friendly_name()
        if name not in replaced:  # case 3
            element = matmul.constant.get_element_type()
            tensor = ov.Tensor(element, ov.Shape([matmul.outputs, matmul.inputs]))
            # bf16 has no numpy type; its bits transpose like any other 16.
            view = np.uint16 if element.get_type_name() == "bf16" else None
            source, target = matmul.constant.data, tensor.data
            np.copyto(*((target, source.T) if view is None else (target.view(view), source.view(view).T)))
            constant = ov.op.Constant(tensor, shared_memory=True)
            constant.set_friendly_name(name)
            replaced[name] = constant
        above = matmul.node.input_value(1).get_node()
        if above.get_type_name() == "Convert":  # case 2
            above.input(0).replace_source_output(replaced[name].output(0))
            above.constructor_validate_and_infer_types()
        else:  # case 1
            matmul.node.input(1).replace_source_output(replaced[name].output(0))
        matmul.node.set_attribute("transpose_b", True)
        count += 1
    return count


def group_by_activation(matmuls: Iterable[WeightMatMul]) -> list[list[WeightMatMul]]:
    """MatMuls by the activation that they read, in the graph's order."""
    groups: dict[tuple[str, int], list[WeightMatMul]] = {}
    for matmul in matmuls:
        output = matmul.node.input_value(0)
        groups.setdefault((output.get_node().get_friendly_name(), output.get_index()), []).append(matmul)
    return list(groups.values())


@contextlib.contextmanager
def quiet_nncf() -> Iterator[tuple[ModuleType, list[str]]]:
    """NNCF with its telemetry, progress bars and console log off.

    Yields:
        The module, and a list to which its log messages of level INFO and above are appended.
    """
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(f"{record.levelname}: {record.getMessage()}")

    # rich, which draws NNCF's progress bars, reads sys.stdout at each call.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _hide_imports():
        nncf = importlib.import_module("nncf")
        logger = logging.getLogger("nncf")
        before = logger.handlers, logger.propagate, logger.level
        logger.handlers, logger.propagate = [Collect()], False
        logger.setLevel(logging.INFO)
        try:
            yield nncf, messages
        finally:
            logger.handlers, logger.propagate = before[:2]
            logger.setLevel(before[2])


@contextlib.contextmanager
def _hide_imports() -> Iterator[None]:
    """Make two optional imports of NNCF fail.

    Telemetry would write to the home folder and open connections. torch, which NNCF needs for torch models only but imports if it
    can, would add 190 MB and most of a second; if it is loaded already, it stays visible.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None makes an import fail, as documented
    names = ["openvino_telemetry"] if "torch" in modules else ["openvino_telemetry", "torch"]
    before = {name: modules[name] for name in names if name in modules}
    modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            del modules[name]
        modules.update(before)
