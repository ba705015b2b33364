"""Self-attention as the exporter writes it: the pattern that `attention` and `packed_qkv` share, and its weights packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optbench.steps.onnx.fusions.base import Refused, Rule, constant_shape, module_path

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Projections", "SelfAttentionRule"]

ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class _Linear:
    """`source @ weight + bias` of a constant weight (in, out) and bias (out,)."""

    source: "ir.Value"
    weight: "ir.Value"
    bias: "ir.Value"


@dataclass(frozen=True)
class Projections:
    """The query, key and value layers of one self-attention: of one shape, on the same source.

    Attributes:
        heads: their number; all have the same width, and together they are as wide as a layer's output.
        prefix: of the packed tensors' names: `encoder.layer.3.attention.self`.
    """

    linears: "tuple[_Linear, ...]"
    heads: int
    prefix: str

    @property
    def source(self) -> "ir.Value":
        """What all three read, (batch, tokens, hidden)."""
        return self.linears[0].source

    def pack(self, op: Any) -> "tuple[ir.Value, ir.Value]":
        """New initializers: the weights side by side, (hidden, 3 * width), and the biases end to end, (3 * width,)."""
        weight = _joined(op, f"{self.prefix}.qkv.weight", [linear.weight for linear in self.linears])
        bias = _joined(op, f"{self.prefix}.qkv.bias", [linear.bias for linear in self.linears])
        return weight, bias


class SelfAttentionRule(Rule):
    """Eager attention of three linear layers on one input, with an additive mask.

        softmax(q @ k^T * scale + mask) @ v
        where q, k, v = x @ W + b, reshaped to (batch, tokens, heads, head size) and transposed

    The linear layers are not part of the pattern: `check` reads them, so that a refusal says which one is wrong, and how.
    """

    def pattern(self, op: Any, query: Any, key: Any, value: Any, scale: Any, mask: Any) -> Any:
        """Everything between the three projections and the merged heads."""
        from onnxscript.rewriter.pattern import ANY_VALUE

        queries = op.Transpose(op.Reshape(query, ANY_VALUE, _outputs=["query_heads"]), perm=[0, 2, 1, 3])
        keys = op.Transpose(op.Reshape(key, ANY_VALUE, _outputs=["key_heads"]), perm=[0, 2, 3, 1])
        values = op.Transpose(op.Reshape(value, ANY_VALUE, _outputs=["value_heads"]), perm=[0, 2, 1, 3])
        scores = op.Add(op.Mul(op.MatMul(queries, keys), scale), mask, _outputs=["scores"])
        context = op.MatMul(op.Softmax(scores, axis=-1), values)
        return op.Reshape(op.Transpose(context, perm=[0, 2, 1, 3]), ANY_VALUE, _outputs=["output"])

    def check(self, **bindings: Any) -> None:
        """Refuse anything but three constant linear layers of one shape on one input, read by this attention only."""
        read_projections(**bindings)
        constant_scalar(bindings["scale"], "the scale of the scores")


def read_projections(*, query: "ir.Value", key: "ir.Value", value: "ir.Value", output: "ir.Value", **bindings: Any) -> Projections:
    """Check that the bound values are one self-attention; the Refused that it raises says which value is wrong, and why."""
    linears = tuple(_read_linear(linear, role) for linear, role in zip((query, key, value), ROLES, strict=True))
    for linear, role in zip(linears[1:], ROLES[1:], strict=True):
        if linear.source is not linears[0].source:
            raise Refused(f"the {role} projection reads {linear.source.name}, the query projection {linears[0].source.name}", linear.source)
        if constant_shape(linear.weight) != constant_shape(linears[0].weight):
            raise Refused(f"the {role} weight has another shape than the query weight", linear.weight)
    source = linears[0].source
    if source.shape is None or len(source.shape) != 3:
        raise Refused("the input of the projections is not known to be (batch, tokens, hidden)", source)
    rows = (source.shape[0], source.shape[1])
    query_heads = bindings["query_heads"]
    for part in (query_heads, bindings["key_heads"], bindings["value_heads"]):
        if part.shape is None or len(part.shape) != 4 or (part.shape[0], part.shape[1]) != rows:
            raise Refused("a projection is not reshaped to (batch, tokens, heads, head size)", part)
        if part.shape[2:] != query_heads.shape[2:] or not all(isinstance(size, int) for size in part.shape[2:]):
            raise Refused("the heads are not a constant number, the same for query, key and value", part)
    heads = query_heads.shape[2] if query_heads.shape is not None else None
    width = constant_shape(linears[0].weight)[1]
    if not isinstance(heads, int) or output.shape is None or tuple(output.shape) != (*rows, width):
        raise Refused("the heads are not merged to (batch, tokens, width)", output)
    root = output.producer()
    return Projections(linears, heads, module_path(root).strip("/").replace("/", ".") if root is not None else "")


def _read_linear(value: "ir.Value", role: str) -> _Linear:
    add = value.producer()
    operands = list(add.inputs) if add is not None and add.op_type == "Add" else []
    # Add commutes: the bias is the operand that is constant.
    operands.sort(key=lambda operand: operand is not None and operand.const_value is not None)
    product, bias = operands or (None, None)
    matmul = product.producer() if product is not None else None
    if matmul is None or matmul.op_type != "MatMul" or bias is None:
        raise Refused(f"the {role} projection is not a MatMul and the Add of a bias", value)
    source, weight = matmul.inputs
    if source is None or weight is None or len(constant_shape(weight)) != 2:
        raise Refused(f"the {role} weight is not a constant matrix", matmul)
    if constant_shape(bias) != constant_shape(weight)[1:]:
        raise Refused(f"the {role} bias is not a constant vector as wide as its weight", bias)
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Refused(f"the {role} projection is also read outside this attention", value)
    return _Linear(source, weight, bias)


def constant_scalar(value: "ir.Value", role: str) -> float:
    """The number a constant holds; refuses one that is computed, or has more than one element."""
    if value.const_value is None or value.const_value.size != 1:
        raise Refused(f"{role} is not a constant scalar", value)
    return float(value.const_value.numpy().item())


def _joined(op: Any, name: str, parts: "Sequence[ir.Value]") -> "ir.Value":
    """An initializer that joins `parts` along the last axis when the graph is written: packing reads no weight."""
    import onnx_ir as ir

    tensors = [part.const_value for part in parts if part.const_value is not None]

    def join() -> "ir.TensorProtocol":
        import numpy as np

        return ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=-1))

    shape = ir.Shape([*constant_shape(parts[0])[:-1], sum(constant_shape(part)[-1] for part in parts)])
    value: ir.Value = op.initializer(ir.LazyTensor(join, dtype=tensors[0].dtype, shape=shape, name=name), name)
    return value
