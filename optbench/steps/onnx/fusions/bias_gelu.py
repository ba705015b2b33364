"""A bias and the GELU behind it as one operator."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from optbench.model.checkpoint import Body
from optbench.steps.onnx.fusions.base import CONTRIB, Fusion, Refused, Rule, constant_shape

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BiasGelu"]


class BiasGelu(Fusion):
    """`Gelu(x + bias)` to `com.microsoft.BiasGelu`.

    ONNX Runtime fuses the same places itself when it loads a graph, so this saves loading time, and shows in the file what runs.

    Rewrite case:
        1. The erf form of GELU, with a constant bias of one axis. The tanh form is another function: BiasGelu has none.
    """

    name: ClassVar[str] = "bias_gelu"
    anchor: ClassVar[str] = "Gelu"

    def expected(self, body: Body) -> int:
        """One a layer."""
        return body.layers

    def rules(self) -> Sequence[Rule]:
        """The one rule."""
        return [_BiasGeluRule()]


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
