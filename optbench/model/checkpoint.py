"""What a checkpoint folder says of itself, read without torch; `torch_model` builds the model.

The layout is sentence-transformers': `config.json` and `model.safetensors` of the transformer, `modules.json` with the modules in order,
`1_Pooling/config.json`, prompts in `config_sentence_transformers.json`, the longest input in `sentence_bert_config.json`.
"""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError

from optbench.errors import BaseModelError
from optbench.machine.frozen import Frozen
from optbench.model.body import BODY_KEYS, OPTIONAL_BODY_KEYS, Body

__all__ = [
    "Description",
    "Pooling",
    "Prompts",
    "describe",
    "read_body",
    "read_json",
    "read_max_tokens",
    "read_named_prompts",
    "read_prompts",
    "write_layout",
]

Pooling = Literal["mean", "cls"]
# A config file has some kilobytes; the bound keeps a hostile one out of memory.
JSON_BYTES_MAX = 16 * 1024 * 1024
ARCHITECTURES = MappingProxyType({"bert": "BertModel", "xlm-roberta": "XLMRobertaModel", "roberta": "RobertaModel", "mpnet": "MPNetModel"})
# Keys of config.json that make transformers run the checkpoint's code, read other weights, or read them in another format.
REFUSED_KEYS = MappingProxyType(
    {
        "auto_map": "asks to run code from the checkpoint, which optbench never does",
        "transformers_weights": "names another weight file; rename it to model.safetensors and remove the key",
        "quantization_config": "says that the weights are quantized already; give the unquantized model",
    }
)


class Prompts(Frozen):
    """Prefixes of queries and documents; empty for none."""

    query: str = Field(default="", description="Before every query, its trailing space included.")
    document: str = Field(default="", description="Before every document.")


class Description(Frozen):
    """What a checkpoint folder says of itself."""

    body: Body
    pooling: Pooling
    normalize: bool
    prompts: Prompts
    max_tokens: int


def read_json(path: Path) -> Any:
    """Parse a small JSON file.

    Raises:
        BaseModelError: missing, too large, or not JSON; says where.
    """
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise BaseModelError(f"{path}: larger than {JSON_BYTES_MAX} bytes, which no such file has; download the model again")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaseModelError(f"{path}: {error.strerror}; a checkpoint needs it: download the model again") from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path}: not JSON ({error}); the file may be truncated: download the model again") from error


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise BaseModelError(f"{path}: a JSON {type(value).__name__}, expected an object; download the model again")
    return value


def read_body(folder: Path) -> Body:
    """The transformer's shape, from `config.json`.

    Raises:
        BaseModelError: an unsupported architecture, or a key that is missing, broken or refused.
    """
    path = folder / "config.json"
    config = _read_object(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise BaseModelError(f"{path}: model_type {model_type!r}; optbench supports {', '.join(ARCHITECTURES)}")
    for key, reason in REFUSED_KEYS.items():
        if config.get(key) is not None:
            raise BaseModelError(f"{path}: {key} {reason}")
    missing = [key for key in BODY_KEYS.values() if key not in config]
    if missing:
        raise BaseModelError(f"{path}: lacks {', '.join(missing)}; the config is incomplete: download the model again")
    values = {name: config[key] for name, key in BODY_KEYS.items()}
    values |= {name: config[key] for name, key in OPTIONAL_BODY_KEYS.items() if key in config}
    # Strict validation refuses a list for a tuple, and JSON has only lists.
    values = {name: _as_tuples(value) for name, value in values.items()}
    # transformers' defaults for what a config may omit.
    values.setdefault("type_vocabulary", 1 if model_type == "mpnet" else 2)
    values.setdefault("pad_id", 0 if model_type == "bert" else 1)
    try:
        return Body.model_validate({"architecture": ARCHITECTURES[model_type], **values}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise BaseModelError(f"{path}: {first['msg'].removeprefix('Value error, ')}; download the model again") from error
        key = {**BODY_KEYS, **OPTIONAL_BODY_KEYS}[str(first["loc"][0])]
        raise BaseModelError(f"{path}: {key} is {first['input']!r}: {first['msg']}; download the model again") from error


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def read_named_prompts(folder: Path) -> dict[str, str]:
    """Every prompt in `config_sentence_transformers.json` by its name; none where the file is missing.

    Raises:
        BaseModelError: a prompt is not a string.
    """
    path = folder / "config_sentence_transformers.json"
    prompts = (_read_object(path).get("prompts") or {}) if path.is_file() else {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise BaseModelError(f"{path}: prompts {json.dumps(prompts)[:80]}; expected an object of strings: correct the file")
    return prompts


def read_prompts(folder: Path) -> Prompts:
    """The prompts of `read_named_prompts` for a query and a document."""
    prompts = read_named_prompts(folder)
    # Authors name the document side "document" or "passage".
    return Prompts(query=prompts.get("query", ""), document=prompts.get("document", prompts.get("passage", "")))


def read_max_tokens(folder: Path) -> int:
    """The longest input in tokens: from `sentence_bert_config.json`, at most what the position table holds.

    Raises:
        BaseModelError: not a length, or a position table with no room for a token.
    """
    body = read_body(folder)
    if body.position_limit < 1:
        raise BaseModelError(
            f"{folder / 'config.json'}: max_position_embeddings {body.positions} leaves no position beside pad_token_id {body.pad_id}; "
            "download the model again"
        )
    path = folder / "sentence_bert_config.json"
    length = _read_object(path).get("max_seq_length") if path.is_file() else None
    if length is None:
        return body.position_limit
    if not isinstance(length, int) or length < 1:
        raise BaseModelError(f"{path}: max_seq_length is {length!r}; expected a number of tokens: correct the file")
    return min(length, body.position_limit)


def describe(folder: Path) -> Description:
    """Read what a checkpoint folder says of itself.

    Raises:
        BaseModelError: a file is missing or broken, optbench does not export its pooling, or modules.json names a module (such as a dense
            head) that the exported graph would leave out.
    """
    path = folder / "modules.json"
    if not path.is_file():
        raise BaseModelError(
            f"{path}: missing, so pooling and normalization are unknown; save the model with sentence-transformers, or add the file"
        )
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BaseModelError(f"{path}: expected a list of modules; download the model again")
    kinds = []
    for module in modules:
        package, _, kind = str(module.get("type", "")).rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or kind not in ("Transformer", "Pooling", "Normalize"):
            raise BaseModelError(
                f"{path}: module {module.get('type')!r} cannot be exported; optbench supports Transformer, Pooling and Normalize of "
                "sentence-transformers"
            )
        kinds.append(kind)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BaseModelError(
            f"{path}: modules {', '.join(kinds) or 'none'}; expected Transformer, Pooling and at most one Normalize, in this order"
        )
    if modules[0].get("path", "") not in ("", "."):
        raise BaseModelError(
            f"{path}: the transformer lies in {modules[0]['path']!r}; move its files to the top and set its path to an empty string"
        )
    return Description(
        body=read_body(folder),
        pooling=_read_pooling(folder, str(modules[1].get("path", "1_Pooling"))),
        normalize="Normalize" in kinds,
        prompts=read_prompts(folder),
        max_tokens=read_max_tokens(folder),
    )


def _read_pooling(folder: Path, name: str) -> Pooling:
    # The name is checked, not where it leads: the folder's files may be links into a hub cache.
    if not name.isprintable() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise BaseModelError(f"{folder / 'modules.json'}: the pooling path {name!r} points outside the folder; do not use this checkpoint")
    path = folder / name / "config.json"
    config = _read_object(path)
    if config.get("include_prompt") is False and read_named_prompts(folder):
        raise BaseModelError(f"{path}: include_prompt is false: optbench does not export pooling that leaves out the prompt's tokens")
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(config.get("pooling_mode"), str):
        modes = ["pooling_mode_" + {"cls": "cls_token", "mean": "mean_tokens"}.get(config["pooling_mode"], config["pooling_mode"])]
    if modes == ["pooling_mode_mean_tokens"]:
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise BaseModelError(f"{path}: {' and '.join(modes) or 'no pooling mode'}; optbench exports mean or cls pooling")


def write_layout(folder: Path, description: Description) -> None:
    """Write the sentence-transformers files that say how `folder` pools, normalizes and prompts."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if description.normalize else [])
    (folder / "1_Pooling").mkdir(exist_ok=True)
    documents: dict[str, Any] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": description.body.hidden,
            "pooling_mode_cls_token": description.pooling == "cls",
            "pooling_mode_mean_tokens": description.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": description.max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": description.prompts.model_dump(),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
