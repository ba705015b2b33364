"""Self-attention as ONNX Runtime's one operator."""

from typing import TYPE_CHECKING, Any, ClassVar

from optbench.steps.onnx.fusions.base import CONTRIB, Fusion, Refused, Rule
from optbench.steps.onnx.fusions.self_attention import SelfAttentionRule, constant_scalar, read_projections

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Attention"]


class _AttentionRule(SelfAttentionRule):
    def check(self, **bindings: Any) -> None:
        super().check(**bindings)
        if _read_raw_mask(bindings["mask"]) is None:
            _check_bias(bindings["mask"], bindings["scores"])

    def rewrite(self, op: Any, **bindings: Any) -> Any:
        import onnx_ir as ir

        projections = read_projections(**bindings)
        weight, bias = projections.pack(op)
        options: dict[str, Any] = {"num_heads": projections.heads, "scale": constant_scalar(bindings["scale"], "the scale of the scores")}
        raw = _read_raw_mask(bindings["mask"])
        if raw is None:  # case 2
            return op.Attention(projections.source, weight, bias, None, None, bindings["mask"], _domain=CONTRIB, **options)
        # Case 1. The operator reads int32; the layers' identical casts are merged afterwards.
        attention_mask, low = raw
        mask_index = op.Cast(attention_mask, to=int(ir.DataType.INT32))
        return op.Attention(projections.source, weight, bias, mask_index, _domain=CONTRIB, mask_filter_value=low, **options)


class Attention(Fusion):
    """Three projections and their attention to `com.microsoft.Attention`, with one (hidden, 3 * width) weight.

    Why this operator: ONNX Runtime's CPU kernel of `MultiHeadAttention` does not take packed QKV ("Packed QKV of shape
    (B, L, N, 3, H) not implemented for CPU", 1.32), so it needs three products, or one product and a Split that copies the
    result. `Attention` takes the packed weight, repacks it per head at load and writes each head where the scores read it:
    no Reshape, Transpose or Split remains. (`MultiHeadAttention`'s flash kernel runs only without a mask.) ONNX Runtime does not
    recognize attention in the exporter's graph. A 24-layer fp32 body takes 0.93 to 1.00 of the time with it (16 and 128 tokens,
    Zen 5), and the three forms of `MultiHeadAttention` are within 1 % of it.

    Rewrite cases:
        1. The mask is `Where(Cast(Unsqueeze(attention_mask)), 0, low)`: `attention_mask` itself becomes the operator's raw
           mask, `low` its `mask_filter_value`. Padding may be on the left, on the right or in the middle.
        2. Any other additive mask of full size, (batch or 1, heads or 1, tokens, tokens): it becomes `attention_bias`.

    The projections are then inside the operator, where only ONNX Runtime's own QAttention can quantize them.
    """

    name: ClassVar[str] = "attention"
    anchor: ClassVar[str] = "Softmax"
    rules: ClassVar[tuple[Rule, ...]] = (_AttentionRule(),)


def _read_raw_mask(mask: "ir.Value") -> "tuple[ir.Value, float] | None":
    """The graph input behind `Where(Cast(Unsqueeze(input, [1, 2]), bool), 0, low)`, and `low`; None for any other mask."""
    import onnx_ir as ir

    where = mask.producer()
    if where is None or where.op_type != "Where":
        return None
    keep, zero, low = where.inputs
    cast = keep.producer() if keep is not None else None
    unsqueeze = cast.inputs[0].producer() if cast is not None and cast.op_type == "Cast" and cast.inputs[0] is not None else None
    if cast is None or unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or zero is None or low is None:
        return None
    attention_mask, axes = unsqueeze.inputs
    if (
        attention_mask is None
        or not attention_mask.is_graph_input()
        or attention_mask.shape is None
        or len(attention_mask.shape) != 2
        or axes is None
        or axes.const_value is None
        or axes.const_value.numpy().tolist() != [1, 2]
        or cast.attributes.get_int("to", None) != ir.DataType.BOOL
    ):
        return None
    try:
        if constant_scalar(zero, "") != 0:
            return None
        return attention_mask, constant_scalar(low, "")
    except Refused:
        return None


def _check_bias(mask: "ir.Value", scores: "ir.Value") -> None:
    """Refuse a mask that the operator could not broadcast: attention_bias broadcasts over batch and heads only."""
    if scores.shape is None or mask.shape is None or len(mask.shape) != 4:
        raise Refused("the shape of the mask, or of the scores, is not known", mask)
    batch, heads, *square = scores.shape
    if mask.shape[0] not in (batch, 1) or mask.shape[1] not in (heads, 1) or list(mask.shape[2:]) != square:
        raise Refused(
            f"the mask has shape {mask.shape} and is not Where(Cast(Unsqueeze(attention_mask)), 0, low); "
            f"attention_bias must cover {scores.shape}",
            mask,
        )
