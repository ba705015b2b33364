"""The embedding tables, their sum and its normalization as one operator."""

from typing import TYPE_CHECKING, Any, ClassVar

from optbench.model.body import Body
from optbench.steps.onnx.fusions.base import CONTRIB, Fusion, Refused, Rule, constant_shape, epsilon_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["EmbedLayerNorm", "sums_embeddings"]


class _EmbedLayerNormRule(Rule):
    def __init__(self, *, with_types: bool) -> None:
        self.with_types = with_types

    def pattern(self, op: Any, words: Any, input_ids: Any, types: Any, positions: Any, position_ids: Any) -> Any:
        from onnxscript.rewriter.pattern import Var

        rows = op.Gather(words, input_ids, _outputs=["rows"])
        total = op.Add(op.Add(rows, types) if self.with_types else rows, op.Gather(positions, position_ids, _outputs=["places"]))
        return op.LayerNormalization(total, Var("gamma"), Var("beta"), axis=-1, _outputs=["normalized"])

    def check(
        self,
        words: "ir.Value",
        input_ids: "ir.Value",
        types: "ir.Value | None",
        positions: "ir.Value",
        position_ids: "ir.Value",
        **bindings: Any,
    ) -> None:
        gamma, beta = bindings["gamma"], bindings["beta"]
        for lookup in (bindings["rows"], bindings["places"]):
            if lookup.producer().attributes.get_int("axis", 0) != 0:
                raise Refused("a table is not looked up by row", lookup)
        if not input_ids.is_graph_input() or input_ids.shape is None or len(input_ids.shape) != 2:
            raise Refused("the words are not looked up by a (batch, tokens) input of the graph", input_ids)
        if len(constant_shape(words)) != 2 or len(constant_shape(positions)) != 2:
            raise Refused("a table is not a constant matrix", words, positions)
        width = constant_shape(words)[1]
        if types is not None and (types.const_value is None or constant_shape(types)[-1:] != (width,) or types.const_value.size != width):
            raise Refused("the token types are not one constant row", types)
        # The operator takes (batch, tokens) and (1, tokens); it checks at run time that the numbers of tokens agree.
        if position_ids.shape is None or len(position_ids.shape) != 2 or position_ids.shape[0] not in (1, input_ids.shape[0]):
            raise Refused(f"the position ids have shape {position_ids.shape}, not (batch or 1, tokens)", position_ids)
        if constant_shape(gamma) != (width,) or constant_shape(beta) != (width,):
            raise Refused("scale and bias of the normalization are not constant vectors", gamma, beta)

    def rewrite(
        self,
        op: Any,
        words: "ir.Value",
        input_ids: "ir.Value",
        types: "ir.Value | None",
        positions: "ir.Value",
        position_ids: "ir.Value",
        **bindings: Any,
    ) -> Any:
        import onnx_ir as ir

        gamma, beta, epsilon = bindings["gamma"], bindings["beta"], epsilon_of(bindings["normalized"])

        if types is not None:  # case 1
            positions = _shifted(op, positions, types)
        ids, places = (op.Cast(indices, to=int(ir.DataType.INT32)) for indices in (input_ids, position_ids))
        # Nothing reads the second output, a count of the mask, but type inference fails when it is left out.
        output, _count = op.EmbedLayerNormalization(
            ids, None, words, positions, None, gamma, beta, None, places, _domain=CONTRIB, _outputs=2, epsilon=epsilon
        )
        return output


class EmbedLayerNorm(Fusion):
    """`LayerNormalization(words[ids] + types + positions[position_ids])` to `com.microsoft.EmbedLayerNormalization`.

    Position ids are always passed, so BERT's 0..n-1 and XLM-R's count of real tokens are one case. An index outside its table is
    an error, as in the unfused graph. ONNX Runtime does not fuse this place in the exporter's graph.

    Rewrite cases:
        1. With a constant row of token types: it is added to the position table once, so it costs nothing at run time.
        2. Without token types.
    """

    name: ClassVar[str] = "embed_layer_norm"
    anchor: ClassVar[str] = "LayerNormalization"
    rules: ClassVar[tuple[Rule, ...]] = (_EmbedLayerNormRule(with_types=True), _EmbedLayerNormRule(with_types=False))

    def expected(self, body: Body) -> int:
        """One a model."""
        return 1

    def is_place(self, node: "ir.Node") -> bool:
        """A normalization of a sum that includes a looked-up row."""
        return sums_embeddings(node)


def sums_embeddings(node: "ir.Node") -> bool:
    """Whether a node normalizes a sum that includes at least one row of a table."""
    values = list(node.inputs[:1]) if node.op_type == "LayerNormalization" else []
    while values:
        value = values.pop()
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Gather":
            return True
        if producer is not None and producer.op_type == "Add":
            values += producer.inputs
    return False


def _shifted(op: Any, table: "ir.Value", row: "ir.Value") -> "ir.Value":
    """A table with `row` added to each of its rows; computed when the graph is written."""
    import onnx_ir as ir

    values, addend = table.const_value, row.const_value
    if values is None or addend is None:
        raise Refused("a table is not a constant matrix", table)
    name = f"{table.name}.with_token_type"

    def add() -> "ir.TensorProtocol":
        return ir.tensor(values.numpy() + addend.numpy().reshape(1, -1))

    shifted: ir.Value = op.initializer(ir.LazyTensor(add, dtype=values.dtype, shape=ir.Shape(constant_shape(table)), name=name), name)
    return shifted
