"""What a fusion is: rules that match a pattern and rewrite it or refuse with a reason, and a report of every place left alone.

onnxscript's rewriter does the matching and rewriting. Rules here are plain classes with its three methods (`pattern`, `check`,
`rewrite`), so that importing them loads nothing heavy.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optbench.model.body import Body
from optbench.steps.base import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CONTRIB", "Fusion", "Outcome", "Refused", "Rule", "constant_shape", "epsilon_of", "module_path"]

CONTRIB = "com.microsoft"
"""The domain of the operators that only ONNX Runtime implements."""


class Refused(Exception):  # noqa: N818  # a verdict on a place in the graph, not an error
    """Raised by a check: the pattern matches here, but the place must be left alone."""

    def __init__(self, reason: str, *found: "ir.Node | ir.Value") -> None:
        super().__init__(reason)
        self.found = list(found)


class Rule(ABC):
    """One pattern and what replaces it."""

    @abstractmethod
    def pattern(self, *args: Any, **kwargs: Any) -> Any:
        """Describe the subgraph: called with onnxscript's pattern builder, then one pattern variable per parameter."""

    @abstractmethod
    def check(self, *args: Any, **kwargs: Any) -> None:
        """Check a match, given as the bound values by name; raises Refused where the place must be left alone."""

    @abstractmethod
    def rewrite(self, *args: Any, **kwargs: Any) -> Any:
        """Build the replacement, given onnxscript's builder and the bound values by name; returns the new output, or raises Refused."""


@dataclass(frozen=True)
class Outcome:
    """What a fusion did to a graph: the number of places rewritten, and those of its kind that remain, with reasons."""

    matched: int
    refused: tuple[Refusal, ...]


class Fusion(ABC):
    """A named set of rules.

    Attributes:
        anchor: the operator that occurs once at every place the fusion is meant for.
        rules: the one that covers most first.
    """

    name: ClassVar[str]
    anchor: ClassVar[str]
    rules: ClassVar[tuple[Rule, ...]]

    def expected(self, body: Body) -> int:
        """Number of places in the graph of such a body: one a layer unless overridden."""
        return body.layers

    def is_place(self, node: "ir.Node") -> bool:
        """Whether this node marks a place the fusion is meant for."""
        return node.op_type == self.anchor

    def apply(self, model: "ir.Model") -> Outcome:
        """Rewrite `model` in place, and explain what was left alone. No weight is read: packed weights are computed when written."""
        from onnx_ir.passes import common
        from onnxscript.rewriter import pattern

        # The operands of Add and Mul may be in either order.
        rule_set = pattern.RewriteRuleSet([_build(rule, self.name) for rule in self.rules], commute=True)
        matched: int = rule_set.apply_to_model(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        tracer = _Tracer()
        for node in model.graph:
            for rule in rule_set.rules:
                rule.match(model, model.graph, node, tracer=tracer)
        refused = [tracer.explain(node, self.name) for node in model.graph if self.is_place(node)]
        return Outcome(matched, tuple(refused))


def _build(rule: Rule, name: str) -> Any:
    """The onnxscript rule: refusals become its MatchResult, and new nodes get names like their neighbors'."""
    from onnxscript.rewriter import pattern

    roots: list[ir.Node] = []

    def check(context: Any, **bindings: Any) -> Any:
        result = pattern.MatchResult()
        try:
            rule.check(**bindings)
        except Refused as refusal:
            return result.fail(str(refusal), refusal.found)
        roots[:] = [context.root]
        return result

    def rewrite(op: Any, **bindings: Any) -> Any:
        try:
            output = rule.rewrite(op, **bindings)
        except Refused as refusal:
            return pattern.MatchResult().fail(str(refusal), refusal.found)
        _name(op.nodes, roots[0])
        return output

    return pattern.RewriteRule(rule.pattern, rewrite, check, name=name)


def _name(nodes: "Sequence[ir.Node]", root: "ir.Node") -> None:
    """Name new nodes and their values after the module of the node they replace: `/encoder/layer.3/attention/self/Attention`.

    A name given by the rule becomes the end of the path: `qkv/MatMul`.
    """
    folder = module_path(root)
    seen: Counter[str] = Counter()
    for node in nodes:
        name = f"{folder}/{node.name or node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}_output_{index}"


def module_path(node: "ir.Node") -> str:
    """The module a node belongs to: `/encoder/layer.3/attention/self`; the name of its first output where its name has no path."""
    if node.name and "/" in node.name:
        return node.name.rpartition("/")[0]
    return f"/{node.outputs[0].name}"


def constant_shape(value: "ir.Value") -> tuple[int, ...]:
    """The shape of a constant; () for a scalar, and for a value computed at run time."""
    return tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()


def epsilon_of(normalized: "ir.Value") -> float:
    """The epsilon of the LayerNormalization that produces a value; ONNX's default is 1e-5."""
    norm = normalized.producer()
    return norm.attributes.get_float("epsilon", 1e-5) if norm is not None else 1e-5


class _Tracer:
    """Records every attempt; onnxscript's own tracer keeps only the best one in the whole graph."""

    def __init__(self) -> None:
        self.attempts: list[tuple[Any, bool]] = []

    def log(self, rule: Any, container: Any, node: "ir.Node", match: Any, status: Any) -> None:
        """Called by the rewriter after each attempt."""
        from onnxscript.rewriter import pattern

        if match is not None and not match:
            self.attempts.append((match, status == pattern.MatchStatus.CONDITION_FAILED))

    def explain(self, place: "ir.Node", rule: str) -> Refusal:
        """The reason of the attempt at `place` that got furthest: one refused by a check before one refused by the pattern."""
        import onnx_ir as ir

        # A full match that is refused because another node reads what it would remove fails without naming a node.
        reached = [
            (checked or not match.failure_nodes_and_values, len(match.nodes), match)
            for match, checked in self.attempts
            if place in match.nodes
        ]
        best = max(reached, key=lambda attempt: attempt[:2], default=(False, 0, None))[2]
        if best is None:
            reason = "the nodes around it do not have the form of the pattern"
        else:
            names = dict.fromkeys(str(found.name) for found in best.failure_nodes_and_values if isinstance(found, (ir.Node, ir.Value)))
            reason = str(best.reason).rstrip(".")
            reason += f" (at {', '.join(names)})" if names else ""
        return Refusal(rule=rule, node=str(place.name), reason=reason)
