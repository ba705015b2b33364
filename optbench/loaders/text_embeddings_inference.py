"""text-embeddings-inference: its rules for an ONNX folder. The server itself is not run.

Source: github.com/huggingface/text-embeddings-inference, backends/ort/src/lib.rs and router/src/lib.rs.
"""

from pathlib import Path
from typing import Any

from optbench.artifact.manifest import Kind
from optbench.errors import BaseModelError
from optbench.loaders.base import RulesLoader
from optbench.model.checkpoint import read_json

__all__ = ["TEXT_EMBEDDINGS_INFERENCE"]

# The inputs that it feeds; the last two only if the graph has them.
INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
# It reads the first of these that the graph has. It pools the last two itself, as 1_Pooling/config.json says.
OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
POOLINGS = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken")
CONFIG_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "max_position_embeddings")


def _problems(folder: Path) -> list[str]:
    problems = _graph_problems(folder / Kind.ONNX.main_file)
    problems += [f"{name} is missing" for name in ("tokenizer.json", "1_Pooling/config.json") if not (folder / name).is_file()]
    try:
        config: Any = read_json(folder / "config.json")
        problems += [f"config.json has no {key}" for key in CONFIG_KEYS if key not in config]
        pooling: Any = read_json(folder / "1_Pooling" / "config.json")
        chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
        if len(chosen) != 1 or chosen[0] not in POOLINGS:
            found = " and ".join(chosen) or "no pooling"
            problems.append(f"1_Pooling/config.json sets {found}; expected exactly one of cls, mean and last token")
    except (BaseModelError, AttributeError, TypeError) as error:
        problems.append(str(error))
    return problems


def _graph_problems(path: Path) -> list[str]:
    import onnx
    from onnx import TensorProto

    graph = onnx.load_model(path, load_external_data=False).graph
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    problems = [f"the graph does not take {name}" for name in ("input_ids", "attention_mask") if name not in inputs]
    problems += [f"the graph takes {name}, which the server does not give" for name in inputs if name not in INPUTS]
    problems += [f"{name} is not int64" for name, kind in inputs.items() if kind != TensorProto.INT64]
    first = next((name for name in OUTPUTS if name in outputs), None)
    if first is None:
        problems.append(f"the graph gives none of {', '.join(OUTPUTS)}")
    elif outputs[first] != TensorProto.FLOAT:
        problems.append(f"{first} is not float32")
    return problems


TEXT_EMBEDDINGS_INFERENCE = RulesLoader(name="text-embeddings-inference", reads=(Kind.ONNX,), problems=_problems)
