"""A residual sum and the layer normalization after it as one operator."""

from typing import TYPE_CHECKING, Any, ClassVar

from optbench.model.body import Body
from optbench.steps.onnx.fusions.base import CONTRIB, Fusion, Refused, Rule, constant_shape, epsilon_of
from optbench.steps.onnx.fusions.embed_layer_norm import sums_embeddings

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["SkipLayerNorm"]


class _SkipLayerNormRule(Rule):
    def __init__(self, *, with_bias: bool) -> None:
        self.with_bias = with_bias

    def pattern(self, op: Any, product: Any, bias: Any, skip: Any, gamma: Any, beta: Any) -> Any:
        total = op.Add(op.Add(product, bias) if self.with_bias else product, skip)
        return op.LayerNormalization(total, gamma, beta, axis=-1, _outputs=["normalized"])

    def check(
        self,
        product: "ir.Value",
        bias: "ir.Value | None",
        skip: "ir.Value",
        gamma: "ir.Value",
        beta: "ir.Value",
        normalized: "ir.Value",
        **_: Any,
    ) -> None:
        norm = normalized.producer()
        if norm is not None and sums_embeddings(norm):
            raise Refused("the sum is of embedding rows, which is embed_layer_norm's place", norm)
        if bias is not None and len(constant_shape(bias)) != 1:
            raise Refused("what is added to the product is not a constant vector", bias)
        if product.shape is None or skip.shape is None or len(skip.shape) != 3 or product.shape != skip.shape:
            raise Refused(f"the two sides of the sum are not of one shape: {product.shape} and {skip.shape}", product, skip)
        if len(constant_shape(gamma)) != 1 or len(constant_shape(beta)) != 1:
            raise Refused("scale and bias of the normalization are not constant vectors", gamma, beta)

    def rewrite(
        self,
        op: Any,
        product: "ir.Value",
        bias: "ir.Value | None",
        skip: "ir.Value",
        gamma: "ir.Value",
        beta: "ir.Value",
        **bindings: Any,
    ) -> Any:
        inputs = [product, skip, gamma, beta] if bias is None else [product, skip, gamma, beta, bias]
        return op.SkipLayerNormalization(*inputs, _domain=CONTRIB, epsilon=epsilon_of(bindings["normalized"]))


class SkipLayerNorm(Fusion):
    """`LayerNormalization(x + skip)` to `com.microsoft.SkipLayerNormalization`.

    Rewrite cases:
        1. `x` is `product + bias` with a constant bias: the operator adds the bias too.
        2. No such bias.

    The sum of the embedding tables is left to `embed_layer_norm`. ONNX Runtime fuses the same places itself when it loads a
    graph, unless `SkipLayerNormFusion` is disabled, so in fp32 this saves loading time at most. In int8 the kernel cost 12-17 %
    of a run at 64-128 tokens (BERT-large body, Zen 5): disable it in the engine there, and omit this fusion.
    """

    name: ClassVar[str] = "skip_layer_norm"
    anchor: ClassVar[str] = "LayerNormalization"
    # The rule without a bias, if first, would match the same places and leave the bias's Add behind.
    rules: ClassVar[tuple[Rule, ...]] = (_SkipLayerNormRule(with_bias=True), _SkipLayerNormRule(with_bias=False))

    def expected(self, body: Body) -> int:
        """Two a layer."""
        return 2 * body.layers

    def is_place(self, node: "ir.Node") -> bool:
        """Every normalization except the one after the embedding tables."""
        return node.op_type == self.anchor and not sums_embeddings(node)
