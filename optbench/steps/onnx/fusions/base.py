"""What a fusion is: rules that look for a pattern, refuse with a reason or rewrite, and an account of every place they left alone.

The matching and rewriting is onnxscript's rewriter. Rules here are plain classes with its three methods (`pattern`, `check`,
`rewrite`), so that importing them loads nothing heavy.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from optbench.model.checkpoint import Body
from optbench.steps.base import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CONTRIB", "Fusion", "Outcome", "Refused", "Rule", "constant_shape", "epsilon_of", "module_path"]

CONTRIB = "com.microsoft"
"""The operator domain that only ONNX Runtime implements."""


class Refused(Exception):  # noqa: N818  # a verdict on a place in the graph, not an error
    """Raised by a check: this place has the pattern, and must be left alone all the same."""

    def __init__(self, reason: str, *found: "ir.Node | ir.Value") -> None:
        super().__init__(reason)
        self.found = list(found)


class Rule(ABC):
    """One pattern and what takes its place."""

    @abstractmethod
    def pattern(self, *args: Any, **kwargs: Any) -> Any:
        """Describe the subgraph: called with onnxscript's pattern builder, then one variable for each further parameter."""

    @abstractmethod
    def check(self, *args: Any, **kwargs: Any) -> None:
        """Look at what matched: called with the bound values by name.

        Raises:
            Refused: the place must be left alone.
        """

    @abstractmethod
    def rewrite(self, *args: Any, **kwargs: Any) -> Any:
        """Build the replacement: called with onnxscript's builder, then the bound values by name; returns the new output.

        Raises:
            Refused: the place must be left alone.
        """


@dataclass(frozen=True)
class Outcome:
    """What a fusion did to a graph.

    Attributes:
        matched: places rewritten.
        refused: places of its kind that still stand, each with the reason of the rule that came nearest.
    """

    matched: int
    refused: tuple[Refusal, ...]


class Fusion(ABC):
    """A named set of rules.

    Attributes:
        name: as a recipe writes it.
        anchor: the operator that stands once at every place the fusion is meant for.
    """

    name: ClassVar[str]
    anchor: ClassVar[str]

    @abstractmethod
    def expected(self, body: Body) -> int:
        """Places in the graph of such a body."""

    @abstractmethod
    def rules(self) -> Sequence[Rule]:
        """The rules, the one that takes most first."""

    def is_place(self, node: "ir.Node") -> bool:
        """Whether this node marks a place the fusion is meant for."""
        return node.op_type == self.anchor

    def apply(self, model: "ir.Model") -> Outcome:
        """Rewrite `model` in place, and explain what was left alone. No weight is read: packed weights are made when written."""
        from onnx_ir.passes import common
        from onnxscript.rewriter import pattern

        # The operands of Add and Mul may stand in either order.
        rule_set = pattern.RewriteRuleSet([_build(rule, self.name) for rule in self.rules()], commute=True)
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

    A name that the rule gave is taken as the end of the path: `qkv/MatMul`.
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
    """The module a node belongs to: `/encoder/layer.3/attention/self`; what its first output is called when it has no such name."""
    if node.name and "/" in node.name:
        return node.name.rpartition("/")[0]
    return f"/{node.outputs[0].name}"


def constant_shape(value: "ir.Value") -> tuple[int, ...]:
    """The shape of a constant; () for what is computed at run time, and for a scalar."""
    return tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()


def epsilon_of(normalized: "ir.Value") -> float:
    """What the LayerNormalization that gives a value adds to the variance; ONNX's default is 1e-5."""
    norm = normalized.producer()
    return norm.attributes.get_float("epsilon", 1e-5) if norm is not None else 1e-5


class _Tracer:
    """Collects every attempt; onnxscript's own tracer keeps only the best of the whole graph."""

    def __init__(self) -> None:
        self.attempts: list[tuple[Any, bool]] = []

    def log(self, rule: Any, container: Any, node: "ir.Node", match: Any, status: Any) -> None:
        """Called by the rewriter after each attempt."""
        from onnxscript.rewriter import pattern

        if match is not None and not match:
            self.attempts.append((match, status == pattern.MatchStatus.CONDITION_FAILED))

    def explain(self, place: "ir.Node", rule: str) -> Refusal:
        """The reason of the attempt that got furthest among those that reached `place`: a check's before a pattern's."""
        import onnx_ir as ir

        # A pattern that matched as a whole, but for a use elsewhere of what it would remove, fails without naming a node.
        reached = [
            (checked or not match.failure_nodes_and_values, len(match.nodes), match)
            for match, checked in self.attempts
            if place in match.nodes
        ]
        best = max(reached, key=lambda attempt: attempt[:2], default=(False, 0, None))[2]
        if best is None:
            reason = "its surroundings have another form than the pattern"
        else:
            names = dict.fromkeys(str(found.name) for found in best.failure_nodes_and_values if isinstance(found, (ir.Node, ir.Value)))
            reason = str(best.reason).rstrip(".")
            reason += f" (at {', '.join(names)})" if names else ""
        return Refusal(rule=rule, node=str(place.name), reason=reason)
