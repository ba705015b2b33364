"""The three projections of self-attention as one product, in standard operators."""

from typing import TYPE_CHECKING, Any, ClassVar

from optbench.steps.onnx.fusions.base import Fusion, Refused, Rule
from optbench.steps.onnx.fusions.self_attention import SelfAttentionRule, read_projections

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PackedQkv"]


class _PackedQkvRule(SelfAttentionRule):
    def rewrite(self, op: Any, **bindings: Any) -> Any:
        projections = read_projections(**bindings)
        weight, bias = projections.pack(op)
        packed = op.Add(op.MatMul(projections.source, weight, _name="qkv/MatMul"), bias, _name="qkv/Add")
        query, key, value = op.Split(packed, axis=-1, num_outputs=3, _outputs=3, _name="qkv/Split")
        # The rewriter replaces everything up to one output, and the projections have three: so the whole attention is rebuilt.
        queries = op.Transpose(_reshape_like(op, bindings["query_heads"], query), perm=[0, 2, 1, 3])
        keys = op.Transpose(_reshape_like(op, bindings["key_heads"], key), perm=[0, 2, 3, 1])
        values = op.Transpose(_reshape_like(op, bindings["value_heads"], value), perm=[0, 2, 1, 3])
        scores = op.Add(op.Mul(op.MatMul(queries, keys), bindings["scale"]), bindings["mask"])
        context = op.MatMul(op.Softmax(scores, axis=-1), values)
        return _reshape_like(op, bindings["output"], op.Transpose(context, perm=[0, 2, 1, 3]))


class PackedQkv(Fusion):
    """Three `MatMul + Add` on one input to one MatMul with a (hidden, 3 * width) weight, one Add, and a Split.

    Uses standard ONNX only, so every engine and quantizer reads it: one larger product, quantized once, instead of three.

    Rewrite case:
        1. The projections become `qkv/MatMul`, `qkv/Add` and `qkv/Split`; the attention after them is rebuilt unchanged.
    """

    name: ClassVar[str] = "packed_qkv"
    anchor: ClassVar[str] = "Softmax"
    rules: ClassVar[tuple[Rule, ...]] = (_PackedQkvRule(),)

    def is_place(self, node: "ir.Node") -> bool:
        """An attention whose query does not come from a Split yet."""
        if node.op_type != self.anchor:
            return False
        producer: ir.Node | None = node
        while producer is not None and producer.op_type in ("Softmax", "Add", "Mul", "MatMul", "Transpose", "Reshape"):
            value = producer.inputs[0]
            producer = value.producer() if value is not None else None
        return producer is None or producer.op_type != "Split"


def _reshape_like(op: Any, example: "ir.Value", value: "ir.Value") -> Any:
    """Reshape `value` as the node that produces `example` does."""
    reshape = example.producer()
    if reshape is None:
        raise Refused("a projection is not reshaped to heads", example)
    return op.Reshape(value, reshape.inputs[1], allowzero=reshape.attributes.get_int("allowzero", 0))
