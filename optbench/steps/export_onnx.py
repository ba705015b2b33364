"""Write a checkpoint as an ONNX graph that also pools and normalizes.

torch's exporter does the translation. This step prepares the module so that the graph has no redundant work, folds constants,
stores each Linear's weight as the [in, out] initializer that its MatMul reads, names every node and initializer after the module it
came from, and refuses a graph whose operators are not those of the exported body.

Node names look like `/encoder/layer.3/output/dense/MatMul`; initializers keep the checkpoint's names,
`encoder.layer.3.output.dense.weight`.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.engines.contract import INPUTS, OUTPUTS
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.model.body import Body
from optbench.model.checkpoint import describe
from optbench.model.torch_model import build_module
from optbench.steps.base import BaseStep, StepContext, StepReport
from optbench.steps.onnx.file import write_onnx

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["ExportOnnx"]

# The attribute of the exported module that holds the transformer; dropped from every name.
BODY = "body"
# Elements of the largest constant that may be merged with an equal one: shapes and scalars, never an all-zero bias.
MERGED_ELEMENTS_MAX = 16
# torch 2.13, torch/onnx/_internal/exporter/_core.py: the module path of a node, outermost first, then the fx node's own name.
NAME_SCOPES = "pkg.torch.onnx.name_scopes"


class ExportOnnx(BaseStep):
    """Export a checkpoint to ONNX, batch and length dynamic.

    Inputs `input_ids` and `attention_mask`, (batch, tokens) int64; outputs `last_hidden_state` (batch, tokens, hidden) and
    `sentence_embedding` (batch, hidden), float32.
    """

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})
    gives: ClassVar[Kind] = Kind.ONNX
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnxscript", "onnx-ir", "onnx")
    pace: ClassVar[tuple[float, float]] = (8.0, 5.0)

    step: Literal["export_onnx"] = "export_onnx"
    opset: int = Field(default=20, ge=20, le=23, description="ONNX opset; 20 is the first with Gelu, 21 the first with INT4.")

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Export `source` to `out/onnx/model.onnx`, with `model.onnx_data` beside it when the weights are large."""
        body = describe(source.path).body
        free_disk(out, source.size_bytes, "the ONNX model")
        with _quiet():
            context.progress("loading the checkpoint", None)
            module = build_module(source.path)
            _skip_needless_work(module, body)
            context.progress("tracing the model", None)
            model = _trace(module, self.opset)
            context.progress("cleaning the graph", None)
            _store_weights_transposed(model)
            _simplify(model)
            _name_after_modules(model)
            matched = check_operators(model, body, source.path)
            context.progress("writing the graph", None)
            external = write_onnx(model, out)
        copy_companions(source.path, out)
        return StepReport(matched=matched, facts={"opset": self.opset, "external_data": external, "nodes": len(model.graph)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings and logs of torch's exporter.

    It warns about missing torchvision operators, its own deprecations and merged axis names, none of which concerns a user: the
    exported graph itself is checked.
    """
    import torch.onnx  # noqa: F401  # importing torch resets the levels of its loggers

    exporter_log = logging.getLogger("torch.onnx")
    exporter_level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(exporter_level)


def _skip_needless_work(module: torch.nn.Module, body: Body) -> None:
    """Pass the transformer two inputs in the form that it would otherwise compute in about twenty nodes.

    transformers gathers a (batch, 1, tokens, tokens) mask and a row of token types for each token. A (batch, 1, 1, tokens) mask and
    one row of token types give the same numbers, and they broadcast and fold.
    """
    import torch

    if body.architecture == "MPNetModel":  # its mask is (batch, 1, 1, tokens) already, and it has no token types
        return

    def prepare(_: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = keywords["attention_mask"][:, None, None, :].to(torch.bool)
        lowest = torch.finfo(torch.float32).min
        keywords["attention_mask"] = torch.where(mask, torch.tensor(0.0), torch.tensor(lowest))
        keywords["token_type_ids"] = torch.zeros(1, 1, dtype=torch.int64)
        return arguments, keywords

    module.body.register_forward_pre_hook(prepare, with_kwargs=True)


def _trace(module: torch.nn.Module, opset: int) -> ir.Model:
    import torch

    # torch.export takes sizes 0 and 1 for constants, so the example has neither.
    ids = torch.full((2, 7), 5, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    program = torch.onnx.export(
        module,
        (ids, torch.ones_like(ids)),
        dynamo=True,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=dict.fromkeys(INPUTS, axes),
        opset_version=opset,
        # Its optimizer would merge equal parameters under the name of the first; see _simplify.
        optimize=False,
        verbose=False,
    )
    model: ir.Model = program.model
    return model


def _store_weights_transposed(model: ir.Model) -> None:
    """Turn `MatMul(x, Transpose(weight))` into `MatMul(x, weight)` with the weight stored as [in, out].

    The transposed copy is made when the graph is written, so the weights are never in memory twice.
    """
    import onnx_ir as ir

    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None or len(weight.uses()) != 1:
            continue
        tensor, permutation = weight.const_value, node.attributes.get_ints("perm")

        def transposed(tensor: ir.TensorProtocol = tensor, permutation: Any = permutation) -> ir.TensorProtocol:
            import numpy as np

            return ir.tensor(np.ascontiguousarray(tensor.numpy().transpose(permutation)))

        sizes = tensor.shape.numpy()
        shape = ir.Shape([sizes[axis] for axis in permutation])
        weight.const_value = ir.LazyTensor(transposed, dtype=tensor.dtype, shape=shape, name=weight.name)
        weight.shape = shape
        node.outputs[0].replace_all_uses_with(weight)
        model.graph.remove(node, safe=True)


def _simplify(model: ir.Model) -> None:
    """Fold constants and merge equal nodes; parameters are not merged.

    These are the passes of onnxscript's `optimize_ir`, except that only shapes and scalars are merged: a model with random weights,
    whose biases are all zero, then has the same graph as the real one.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model)
        common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]  # its __init__ has no annotations
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=MERGED_ELEMENTS_MAX)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)


def _module_path(node: ir.Node) -> list[str]:
    """Where in the module tree a node comes from: `["encoder", "layer.3", "output", "dense"]`; empty outside the transformer.

    A node that a rewrite made without metadata belongs to the module that feeds it.
    """
    if NAME_SCOPES not in node.metadata_props:
        producer = next((value.producer() for value in node.inputs if value is not None and value.producer() is not None), None)
        return _module_path(producer) if producer is not None else []
    scopes = ast.literal_eval(node.metadata_props[NAME_SCOPES])[:-1]
    inside = [scope for scope in scopes if scope.startswith(f"{BODY}.")]
    return [inner.removeprefix(f"{outer}.") for outer, inner in pairwise([BODY, *inside])]


def _name_after_modules(model: ir.Model) -> None:
    """Name nodes, values and constants after the module they come from, and drop the exporter's bulky metadata."""
    from onnx_ir.passes import common

    graph = model.graph
    seen: Counter[str] = Counter()
    kept = set(graph.outputs)
    # Nodes outside the transformer prepare its mask before the last layer, and pool after it.
    outside = graph.inputs[1].name
    for node in graph:
        name = "/" + "/".join([*(_module_path(node) or [str(outside)]), node.op_type])
        count = seen[name]
        seen[name] += 1
        node.name = f"{name}_{count}" if count else name
        for index, value in enumerate(node.outputs):
            if value not in kept:
                value.name = f"{node.name}_output_{index}"
            elif value is graph.outputs[0]:
                outside = graph.outputs[1].name
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith(f"{BODY}."):
            value.name = value.name.removeprefix(f"{BODY}.")
            continue
        user, index = next(iter(value.uses()))
        value.name = f"{user.name}_constant_{index}"
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]:
        value.metadata_props.clear()
    graph.metadata_props.clear()
    common.ClearMetadataAndDocStringPass()(model)


def check_operators(model: ir.Model, body: Body, where: Path) -> dict[str, int]:
    """Count the main operators; refuse other counts than those of `body`, and weights that are transposed at run time."""
    found = Counter(node.op_type for node in model.graph)
    expected = {
        "MatMul": 8 * body.layers,  # query, key, value, scores, context, attention output, two of the feed-forward
        "LayerNormalization": 2 * body.layers + 1,
        "Gelu": body.layers,
        "Softmax": body.layers,
    }
    problems = [f"{found[name]} {name}, not {count}" for name, count in expected.items() if found[name] != count]
    problems += [
        f"{node.name} transposes a weight at run time"
        for node in model.graph
        if node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    ]
    if problems:
        raise StepError(
            f"{where}: the exported graph is not that of a {body.architecture} of {body.layers} layers with GELU: {'; '.join(problems)}; "
            "check hidden_act and num_hidden_layers in its config.json, and the versions of torch and onnxscript"
        )
    return {name: found[name] for name in expected}
