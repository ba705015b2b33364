"""text-embeddings-inference's rules for an ONNX folder, checked as rules: the server itself is not run.

Source: github.com/huggingface/text-embeddings-inference, backends/ort/src/lib.rs and router/src/lib.rs.
"""

from pathlib import Path
from typing import Any

from optbench.errors import BaseModelError
from optbench.model.checkpoint import read_json

__all__ = ["layout_problems"]

# It feeds these and no others; the last two only when the graph asks for them.
INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
# In the order that it takes them: the first is used as it is, the others are pooled as 1_Pooling/config.json says.
OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
POOLINGS = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken")


def layout_problems(folder: Path) -> list[str]:
    """What the server would refuse or misread of a folder with an ONNX graph.

    Args:
        folder: holds `onnx/model.onnx`.

    Returns:
        One sentence a rule that is broken.
    """
    import onnx
    from onnx import TensorProto

    problems = []
    graph = onnx.load_model(folder / "onnx" / "model.onnx", load_external_data=False).graph
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    problems += [f"the graph does not take {name}" for name in ("input_ids", "attention_mask") if name not in inputs]
    problems += [f"the graph takes {name}, which the server does not give" for name in inputs if name not in INPUTS]
    problems += [f"{name} is not int64" for name, kind in inputs.items() if kind != TensorProto.INT64]
    first = next((name for name in OUTPUTS if name in outputs), None)
    if first is None:
        problems.append(f"the graph gives none of {', '.join(OUTPUTS)}")
    elif outputs[first] != TensorProto.FLOAT:
        problems.append(f"{first} is not float32")
    problems += [f"{name} is missing" for name in ("tokenizer.json", "1_Pooling/config.json") if not (folder / name).is_file()]
    try:
        config: Any = read_json(folder / "config.json")
        problems += [
            f"config.json has no {key}"
            for key in ("model_type", "hidden_size", "num_hidden_layers", "max_position_embeddings")
            if key not in config
        ]
        pooling: Any = read_json(folder / "1_Pooling" / "config.json")
        chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
        if len(chosen) != 1 or chosen[0] not in POOLINGS:
            problems.append(
                f"1_Pooling/config.json asks for {' and '.join(chosen) or 'no pooling'}; one of cls, mean and last token is wanted"
            )
    except (BaseModelError, AttributeError, TypeError) as error:
        problems.append(str(error))
    return problems
