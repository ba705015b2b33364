"""The graph contract: which inputs and outputs an engine accepts."""

import pytest

from optbench.engines.contract import INPUTS, OUTPUTS, check_graph
from optbench.errors import EngineError


def test_inputs_may_come_in_any_order_and_the_hidden_state_is_optional() -> None:
    check_graph("model.onnx", INPUTS, OUTPUTS)
    check_graph("model.onnx", INPUTS[::-1], OUTPUTS[1:])


@pytest.mark.parametrize(
    ("inputs", "outputs", "found"),
    [
        (INPUTS[:1], OUTPUTS, "inputs input_ids and outputs"),
        ((*INPUTS, "token_type_ids"), OUTPUTS, "inputs attention_mask, input_ids, token_type_ids and outputs"),
        (INPUTS, OUTPUTS[:1], "outputs last_hidden_state; expected .* output sentence_embedding: export it with export_onnx"),
    ],
)
def test_other_graph_is_refused_with_what_it_has(inputs: tuple[str, ...], outputs: tuple[str, ...], found: str) -> None:
    with pytest.raises(EngineError, match=rf"model\.onnx: the graph has .*{found}"):
        check_graph("model.onnx", inputs, outputs)
