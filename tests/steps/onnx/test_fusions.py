"""Each fusion on a graph built by hand: what it takes, what it leaves alone and why."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser, shape_inference

from optbench.steps.onnx.fusions import FUSIONS, Outcome

HIDDEN, HEADS = 8, 2

# Two heads of four on (batch, tokens, 8), as the exporter writes them.
PROJECTIONS = """
    qm = MatMul(x, query_weight)      q = Add(qm, query_bias)
    km = MatMul(x, key_weight)        k = Add(km, key_bias)
    vm = MatMul(x, value_weight)      v = Add(vm, value_bias)
"""
ATTEND = """
    qr = Reshape(q, heads)    qt = Transpose<perm = [0, 2, 1, 3]>(qr)
    kr = Reshape(k, heads)    kt = Transpose<perm = [0, 2, 3, 1]>(kr)
    vr = Reshape(v, heads)    vt = Transpose<perm = [0, 2, 1, 3]>(vr)
    scores = MatMul(qt, kt)   scaled = Mul(scores, scale)   masked = Add(scaled, mask)
    p = Softmax<axis = -1>(masked)
    c = MatMul(p, vt)         ct = Transpose<perm = [0, 2, 1, 3]>(c)
    y = Reshape(ct, merged)
"""
KEY_MASK = """
    m4 = Unsqueeze(attention_mask, axes)   keep = Cast<to = 9>(m4)   mask = Where(keep, zero, low)
"""
X = "float[batch, tokens, 8] x"
Y = "float[batch, tokens, 8] y"
KEYED = f"{X}, int64[batch, tokens] attention_mask"


def weights(seed: int = 3) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    matrices = {f"{role}_weight": normal(HIDDEN, HIDDEN) for role in ("query", "key", "value", "output")}
    vectors = {f"{role}_bias": normal(HIDDEN) for role in ("query", "key", "value", "output")}
    return {
        **matrices,
        **vectors,
        "heads": np.array([0, 0, HEADS, HIDDEN // HEADS]),
        "merged": np.array([0, 0, HIDDEN]),
        "scale": np.array(0.4, np.float32),
        "axes": np.array([1, 2]),
        "zero": np.array(0, np.float32),
        "low": np.array(np.finfo(np.float32).min),
        "gamma": normal(HIDDEN),
        "beta": normal(HIDDEN),
        "words": normal(20, HIDDEN),
        "positions": normal(16, HIDDEN),
        "types": normal(1, 1, HIDDEN),
    }


def build(inputs: str, body: str, outputs: str = Y, *, replaced: Mapping[str, NDArray[Any]] | None = None) -> ir.Model:
    """A model from ONNX text; the constants it names are taken from `weights()`, or from `replaced`."""
    text = f'<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = parser.parse_model(text)
    used = {name for node in proto.graph.node for name in node.input}
    constants = weights() | dict(replaced or {})
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used)
    for node in proto.graph.node:
        node.name = f"/layer.0/self/{node.output[0]}"
    return ir.from_proto(shape_inference.infer_shapes(proto, strict_mode=True))


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def open_session(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session that computes the operators as they are written: the engine's own fusions are off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: ir.Model, feed: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = open_session(model).run(None, feed)
    return outputs


def fuse(name: str, model: ir.Model) -> Outcome:
    outcome = FUSIONS[name].apply(model)
    onnx.checker.check_model(ir.to_proto(model))
    return outcome


def hidden_states(seed: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((3, 6, HIDDEN)).astype(np.float32)


# Padded right, padded left, and with a hole.
HOLED_MASK = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]])

# float32 rounds to 2^-24. Sums of at most 32 products of size 4 in another order: 32 * 4 * 2^-24 = 8e-6 for one operator.
OPERATOR_TOLERANCE = 1e-5


class TestAttention:
    def test_masked_attention_becomes_one_operator_that_reads_the_raw_mask(self) -> None:
        model = build(KEYED, KEY_MASK + PROJECTIONS + ATTEND)
        feed = {"x": hidden_states(), "attention_mask": HOLED_MASK}
        before = run(model, feed)
        outcome = fuse("attention", model)
        assert (outcome.matched, outcome.refused) == (1, ())
        assert count(model) == {"Cast": 1, "Attention": 1}
        node = next(node for node in model.graph if node.op_type == "Attention")
        assert node.name == "/layer.0/self/Attention"
        assert node.attributes.get_int("num_heads") == HEADS
        assert set(model.graph.initializers) == {"layer.0.self.qkv.weight", "layer.0.self.qkv.bias"}
        np.testing.assert_allclose(run(model, feed)[0], before[0], atol=OPERATOR_TOLERANCE)

    def test_any_other_full_mask_becomes_the_attention_bias(self) -> None:
        model = build(f"{X}, float[batch, 1, tokens, tokens] mask", PROJECTIONS + ATTEND)
        mask = np.random.default_rng(1).standard_normal((3, 1, 6, 6)).astype(np.float32)
        feed = {"x": hidden_states(), "mask": mask}
        before = run(model, feed)
        assert fuse("attention", model).matched == 1
        assert count(model) == {"Attention": 1}
        np.testing.assert_allclose(run(model, feed)[0], before[0], atol=OPERATOR_TOLERANCE)

    def test_operands_of_a_sum_may_stand_in_either_order(self) -> None:
        swapped = PROJECTIONS.replace("Add(qm, query_bias)", "Add(query_bias, qm)")
        model = build(KEYED, KEY_MASK + swapped + ATTEND.replace("Add(scaled, mask)", "Add(mask, scaled)"))
        assert fuse("attention", model).matched == 1

    @pytest.mark.parametrize(
        ("inputs", "body", "replaced", "reason"),
        [
            (
                f"{KEYED}, float[batch, tokens, 8] other",
                KEY_MASK + PROJECTIONS.replace("MatMul(x, key_weight)", "MatMul(other, key_weight)") + ATTEND,
                {},
                "the key projection reads other, the query projection x (at other)",
            ),
            (
                KEYED,
                KEY_MASK + PROJECTIONS.replace("v = Add(vm, value_bias)", "v = Identity(vm)") + ATTEND,
                {},
                "the value projection is not a MatMul and the Add of a bias (at v)",
            ),
            (
                f"{KEYED}, float[8, 8] key_weight_input",
                KEY_MASK + PROJECTIONS.replace("key_weight", "key_weight_input") + ATTEND,
                {},
                "the key weight is not a constant matrix (at /layer.0/self/km)",
            ),
            (
                f"{X}, float[batch, 1, 1, tokens] mask",
                PROJECTIONS + ATTEND,
                {},
                "the mask has shape [batch,1,1,tokens] and is not Where(Cast(Unsqueeze(attention_mask)), 0, low); "
                "attention_bias must cover [batch,2,tokens,tokens] (at mask)",
            ),
            (
                KEYED,
                KEY_MASK + PROJECTIONS + ATTEND,
                {"zero": np.array(1, np.float32)},
                "the mask has shape [batch,1,1,tokens] and is not Where(Cast(Unsqueeze(attention_mask)), 0, low); "
                "attention_bias must cover [batch,2,tokens,tokens] (at mask)",
            ),
            (
                f"{KEYED}, float scale_input",
                KEY_MASK + PROJECTIONS + ATTEND.replace("Mul(scores, scale)", "Mul(scores, scale_input)"),
                {},
                "the scale of the scores is not a constant scalar (at scale_input)",
            ),
        ],
    )
    def test_near_miss_is_left_alone_with_its_reason(self, inputs: str, body: str, replaced: dict[str, NDArray[Any]], reason: str) -> None:
        model = build(inputs, body, replaced=replaced)
        before = count(model)
        outcome = fuse("attention", model)
        assert outcome.matched == 0
        assert [refusal.model_dump() for refusal in outcome.refused] == [{"rule": "attention", "node": "/layer.0/self/p", "reason": reason}]
        assert count(model) == before

    def test_projection_that_is_read_elsewhere_is_left_alone(self) -> None:
        model = build(KEYED, KEY_MASK + PROJECTIONS + ATTEND, f"{Y}, float[batch, tokens, 8] q")
        outcome = fuse("attention", model)
        assert outcome.matched == 0
        assert outcome.refused[0].reason == "the query projection is also read outside this attention (at q)"

    def test_softmax_of_another_kind_of_graph_is_refused_by_name(self) -> None:
        model = build(X, "y = Softmax<axis = -1>(x)")
        outcome = fuse("attention", model)
        assert outcome.refused[0].node == "/layer.0/self/y"
        assert outcome.refused[0].reason == "the nodes around it do not have the form of the pattern"


class TestPackedQkv:
    def test_three_projections_become_one_product_and_a_split(self) -> None:
        model = build(KEYED, KEY_MASK + PROJECTIONS + ATTEND)
        feed = {"x": hidden_states(), "attention_mask": HOLED_MASK}
        before, operators = run(model, feed), count(model)
        outcome = fuse("packed_qkv", model)
        assert (outcome.matched, outcome.refused) == (1, ())
        assert count(model) == operators - Counter({"MatMul": 2, "Add": 2}) + Counter({"Split": 1})
        assert {node.domain for node in model.graph} == {""}
        assert [node.name for node in model.graph if "qkv" in str(node.name)] == [
            f"/layer.0/self/qkv/{operator}" for operator in ("MatMul", "Add", "Split")
        ]
        assert model.graph.initializers["layer.0.self.qkv.weight"].shape == (HIDDEN, 3 * HIDDEN)
        np.testing.assert_allclose(run(model, feed)[0], before[0], atol=OPERATOR_TOLERANCE)

    def test_weights_of_different_shapes_are_left_alone(self) -> None:
        model = build(
            KEYED,
            KEY_MASK
            + PROJECTIONS
            + ATTEND.replace("Reshape(v, heads)", "Reshape(v, wide)").replace("Reshape(ct, merged)", "Reshape(ct, all)"),
            "float[batch, tokens, 12] y",
            replaced={
                "value_weight": np.ones((HIDDEN, 12), np.float32),
                "value_bias": np.ones(12, np.float32),
                "wide": np.array([0, 0, HEADS, 6]),
                "all": np.array([0, 0, 12]),
            },
        )
        outcome = fuse("packed_qkv", model)
        assert outcome.matched == 0
        assert outcome.refused[0].reason == "the value weight has another shape than the query weight (at value_weight)"


class TestBiasGelu:
    def test_bias_and_gelu_become_one_operator(self) -> None:
        model = build(X, "h = MatMul(x, output_weight) b = Add(h, output_bias) y = Gelu(b)")
        before = run(model, {"x": hidden_states()})
        assert fuse("bias_gelu", model) == Outcome(1, ())
        assert count(model) == {"MatMul": 1, "BiasGelu": 1}
        np.testing.assert_allclose(run(model, {"x": hidden_states()})[0], before[0], atol=OPERATOR_TOLERANCE)

    @pytest.mark.parametrize(
        ("body", "replaced", "reason"),
        [
            (
                'b = Add(x, output_bias) y = Gelu<approximate = "tanh">(b)',
                {},
                "GELU in its tanh form, which BiasGelu does not compute (at /layer.0/self/y)",
            ),
            (
                "b = Add(x, output_bias) y = Gelu(b)",
                {"output_bias": np.ones((1, 1, HIDDEN), np.float32)},
                "what is added before GELU is not a constant vector (at output_bias)",
            ),
            ("b = Mul(x, output_bias) y = Gelu(b)", {}, "OpType mismatch: expected Add, got Mul (at /layer.0/self/b)"),
        ],
    )
    def test_near_miss_is_left_alone_with_its_reason(self, body: str, replaced: dict[str, NDArray[Any]], reason: str) -> None:
        model = build(X, body, replaced=replaced)
        outcome = fuse("bias_gelu", model)
        assert outcome.matched == 0
        assert [(refusal.node, refusal.reason) for refusal in outcome.refused] == [("/layer.0/self/y", reason)]


class TestSkipLayerNorm:
    @pytest.mark.parametrize("total", ["s = Add(b, x)", "s = Add(x, b)"])
    def test_biased_residual_and_its_normalization_become_one_operator(self, total: str) -> None:
        norm = "y = LayerNormalization<axis = -1, epsilon = 0.01>(s, gamma, beta)"
        model = build(X, f"h = MatMul(x, output_weight) b = Add(h, output_bias) {total} {norm}")
        before = run(model, {"x": hidden_states()})
        assert fuse("skip_layer_norm", model) == Outcome(1, ())
        assert count(model) == {"MatMul": 1, "SkipLayerNormalization": 1}
        np.testing.assert_allclose(run(model, {"x": hidden_states()})[0], before[0], atol=OPERATOR_TOLERANCE)

    def test_residual_without_a_bias_becomes_one_operator(self) -> None:
        model = build(X, "h = MatMul(x, output_weight) s = Add(h, x) y = LayerNormalization<axis = -1>(s, gamma, beta)")
        before = run(model, {"x": hidden_states()})
        assert fuse("skip_layer_norm", model) == Outcome(1, ())
        assert count(model) == {"MatMul": 1, "SkipLayerNormalization": 1}
        np.testing.assert_allclose(run(model, {"x": hidden_states()})[0], before[0], atol=OPERATOR_TOLERANCE)

    def test_sum_that_broadcasts_is_left_alone(self) -> None:
        model = build(f"{X}, float[1, tokens, 8] row", "s = Add(x, row) y = LayerNormalization<axis = -1>(s, gamma, beta)")
        outcome = fuse("skip_layer_norm", model)
        assert outcome.matched == 0
        assert outcome.refused[0].reason == ("the two sides of the sum are not of one shape: [batch,tokens,8] and [1,tokens,8] (at x, row)")

    def test_sum_that_is_read_elsewhere_is_left_alone(self) -> None:
        model = build(X, "s = Add(x, x) y = LayerNormalization<axis = -1>(s, gamma, beta)", f"{Y}, float[batch, tokens, 8] s")
        outcome = fuse("skip_layer_norm", model)
        assert outcome.matched == 0
        assert outcome.refused[0].reason == "Matched nodes have other uses preventing replacement"

    def test_sum_of_embeddings_is_no_place_of_it(self) -> None:
        model = build("int64[batch, tokens] input_ids, int64[batch, tokens] position_ids", EMBEDDINGS)
        assert fuse("skip_layer_norm", model) == Outcome(0, ())


EMBEDDINGS = """
    w = Gather<axis = 0>(words, input_ids)   t = Add(w, types)
    p = Gather<axis = 0>(positions, position_ids)   s = Add(t, p)
    y = LayerNormalization<axis = -1, epsilon = 0.00001>(s, gamma, beta)
"""


class TestEmbedLayerNorm:
    @pytest.mark.parametrize("rows", ["batch", "1"])
    def test_tables_and_normalization_become_one_operator(self, rows: str) -> None:
        model = build(f"int64[batch, tokens] input_ids, int64[{rows}, tokens] position_ids", EMBEDDINGS)
        random = np.random.default_rng(2)
        feed = {"input_ids": random.integers(0, 20, (3, 6)), "position_ids": random.integers(0, 16, (3 if rows == "batch" else 1, 6))}
        before = run(model, feed)
        assert fuse("embed_layer_norm", model) == Outcome(1, ())
        assert count(model) == {"Cast": 2, "EmbedLayerNormalization": 1}
        assert "positions.with_token_type" in model.graph.initializers
        np.testing.assert_allclose(run(model, feed)[0], before[0], atol=OPERATOR_TOLERANCE)

    def test_tables_without_token_types_are_taken_as_they_are(self) -> None:
        body = EMBEDDINGS.replace("t = Add(w, types)", "").replace("Add(t, p)", "Add(w, p)")
        model = build("int64[batch, tokens] input_ids, int64[1, tokens] position_ids", body)
        feed = {"input_ids": np.array([[3, 0, 7]]), "position_ids": np.array([[0, 1, 2]])}
        before = run(model, feed)
        assert fuse("embed_layer_norm", model) == Outcome(1, ())
        assert set(model.graph.initializers) == {"words", "positions", "gamma", "beta"}
        np.testing.assert_allclose(run(model, feed)[0], before[0], atol=OPERATOR_TOLERANCE)

    @pytest.mark.parametrize(
        ("inputs", "body", "reason"),
        [
            (
                "int64[batch, tokens] input_ids, int64[1, tokens] position_ids, float[batch, tokens, 8] token_types",
                EMBEDDINGS.replace("Add(w, types)", "Add(w, token_types)"),
                "the token types are not one constant row (at token_types)",
            ),
            (
                "int64[batch, tokens] input_ids, int64[1, tokens] position_ids",
                "shifted = Add(input_ids, axes)" + EMBEDDINGS.replace("(words, input_ids)", "(words, shifted)"),
                "the words are not looked up by a (batch, tokens) input of the graph (at shifted)",
            ),
            (
                "int64[batch, tokens] input_ids, int64[tokens] position_ids",
                EMBEDDINGS,
                "the position ids have shape [tokens], not (batch or 1, tokens) (at position_ids)",
            ),
        ],
    )
    def test_near_miss_is_left_alone_with_its_reason(self, inputs: str, body: str, reason: str) -> None:
        model = build(inputs, body, replaced={"axes": np.array([[1]])})
        outcome = fuse("embed_layer_norm", model)
        assert outcome.matched == 0
        assert [(refusal.node, refusal.reason) for refusal in outcome.refused] == [("/layer.0/self/y", reason)]
