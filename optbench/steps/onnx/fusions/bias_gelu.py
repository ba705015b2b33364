"""A bias and the GELU after it as one operator."""

from typing import TYPE_CHECKING, Any, ClassVar

from optbench.steps.onnx.fusions.base import CONTRIB, Fusion, Refused, Rule, constant_shape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BiasGelu"]


class _BiasGeluRule(Rule):
    def pattern(self, op: Any, product: Any, bias: Any) -> Any:
        return op.Gelu(op.Add(product, bias), _outputs=["activated"])

    def check(self, bias: "ir.Value", activated: "ir.Value", **_: Any) -> None:
        gelu = activated.producer()
        if gelu is not None and gelu.attributes.get_string("approximate", "none") != "none":
            raise Refused("GELU in its tanh form, which BiasGelu does not compute", gelu)
        if len(constant_shape(bias)) != 1:
            raise Refused("what is added before GELU is not a constant vector", bias)

    def rewrite(self, op: Any, product: "ir.Value", bias: "ir.Value", **_: Any) -> Any:
        return op.BiasGelu(product, bias, _domain=CONTRIB)


class BiasGelu(Fusion):
    """`Gelu(x + bias)` to `com.microsoft.BiasGelu`.

    ONNX Runtime fuses the same places itself when it loads a graph, so this saves loading time, and the file shows what runs.

    Rewrite case:
        1. The erf form of GELU, with a constant bias of one axis. BiasGelu does not compute the tanh form.
    """

    name: ClassVar[str] = "bias_gelu"
    anchor: ClassVar[str] = "Gelu"
    rules: ClassVar[tuple[Rule, ...]] = (_BiasGeluRule(),)
