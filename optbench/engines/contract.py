"""The graph contract: the inputs and outputs of every graph that optbench exports, and that its engines open.

Inputs, (batch, tokens) int64: `input_ids`; `attention_mask`, 1 for a token, 0 for padding.
Outputs, float32: `last_hidden_state` (batch, tokens, hidden); `sentence_embedding` (batch, dimension), pooled and, where the model
says so, projected, normalized and truncated.

The vector of a text, by definition, is the `sentence_embedding` of that text alone and without padding, from the graph compiled for
inputs of any shape, as every other loader compiles it. `BaseEngine.reference` gives the engine that computes it. `verify` compares
loaders with it, stability compares every other condition with it, and an engine that compiles more shapes has to agree with it.
"""

from collections.abc import Iterable

from optbench.errors import EngineError

__all__ = ["EMBEDDING", "INPUTS", "OUTPUTS", "check_graph"]

INPUTS = ("input_ids", "attention_mask")
EMBEDDING = "sentence_embedding"
OUTPUTS = ("last_hidden_state", EMBEDDING)


def check_graph(name: str, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse a graph that an engine cannot feed, or that does not pool. An engine needs no `last_hidden_state`."""
    inputs, outputs = sorted(inputs), list(outputs)
    if inputs != sorted(INPUTS) or EMBEDDING not in outputs:
        raise EngineError(
            f"{name}: the graph has inputs {', '.join(inputs)} and outputs {', '.join(outputs)}; "
            f"expected inputs {' and '.join(INPUTS)} and output {EMBEDDING}: export it with export_onnx"
        )
