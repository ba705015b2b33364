"""What a checkpoint folder says of itself, read without torch; `torch_model` builds the model.

The layout is sentence-transformers': `config.json` and `model.safetensors` of the transformer, `modules.json` with the modules in order,
`1_Pooling/config.json`, and the settings of `optbench.model.settings`. Whatever would change token ids or vectors is read or refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from optbench.errors import BaseModelError
from optbench.machine.frozen import Frozen
from optbench.model.body import BODY_KEYS, OPTIONAL_BODY_KEYS, Body
from optbench.model.json_file import read_json, read_object
from optbench.model.other_kinds import name_by_module
from optbench.model.settings import (
    MODEL_SETTINGS,
    SENTENCE_CONFIG,
    Prompts,
    Similarity,
    read_named_prompts,
    read_prompts,
    read_settings,
    read_stated_length,
    refuse_other_settings,
)

__all__ = [
    "Description",
    "Layout",
    "Pooling",
    "Prompts",
    "describe",
    "model_settings",
    "read_body",
    "read_json",
    "read_max_tokens",
    "read_modules",
    "read_named_prompts",
    "read_prompts",
    "write_layout",
]

Pooling = Literal["mean", "cls"]
ARCHITECTURES = MappingProxyType({"bert": "BertModel", "xlm-roberta": "XLMRobertaModel", "roberta": "RobertaModel", "mpnet": "MPNetModel"})
# Keys of config.json that make transformers run the checkpoint's code, read other weights, or read them in another format.
REFUSED_KEYS = MappingProxyType(
    {
        "auto_map": "asks to run code from the checkpoint, which optbench never does",
        "transformers_weights": "names another weight file; rename it to model.safetensors and remove the key",
        "quantization_config": "says that the weights are quantized already; give the unquantized model",
    }
)
# Keys of config.json that change what the transformer computes, with the values that optbench exports.
EXPORTED_VALUES: Mapping[str, tuple[tuple[object, ...], str]] = MappingProxyType(
    {
        "hidden_act": (("gelu",), "optbench exports the activation gelu"),
        "position_embedding_type": (
            ("absolute",),
            "optbench exports absolute positions, and transformers 5 ignores the key, so both would give wrong vectors",
        ),
        "is_decoder": ((False,), "optbench exports bidirectional attention, not a decoder's causal attention"),
        "add_cross_attention": ((False,), "optbench exports no cross-attention"),
        "is_encoder_decoder": ((False,), "optbench exports encoders"),
        "pruned_heads": (({}, []), "transformers 5 cannot load pruned heads; prune the model with prune_structured instead"),
    }
)


@dataclass(frozen=True)
class Layout:
    """The modules after the transformer."""

    pooling: Pooling
    normalize: bool


class Description(Frozen):
    """What a checkpoint folder says of itself.

    Attributes:
        max_tokens: the longest input, special tokens included.
        dimension: leading components of the embedding that are kept, after normalization; None for all.
        similarity: how its embeddings are compared.
        default_prompt: the name of the prompt that is prepended where none is named.
    """

    body: Body
    pooling: Pooling
    normalize: bool
    prompts: Prompts
    max_tokens: int
    dimension: int | None = None
    similarity: Similarity = "cosine"
    default_prompt: str | None = None

    @property
    def embedding_dimension(self) -> int:
        """Components of an embedding."""
        return self.dimension or self.body.hidden


def read_body(folder: Path) -> Body:
    """The transformer's shape, from `config.json`.

    Raises:
        BaseModelError: an unsupported architecture, or a key that is missing, broken or refused.
    """
    path = folder / "config.json"
    config = read_object(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise BaseModelError(f"{path}: model_type {model_type!r}; optbench supports {', '.join(ARCHITECTURES)}")
    for key, reason in REFUSED_KEYS.items():
        if config.get(key) is not None:
            raise BaseModelError(f"{path}: {key} {reason}")
    for key, (exported, reason) in EXPORTED_VALUES.items():
        if config.get(key) is not None and config[key] not in exported:
            raise BaseModelError(f"{path}: {key} is {config[key]!r}: {reason}; give another model")
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


def read_max_tokens(folder: Path) -> int:
    """The longest input in tokens: what the files state, at most what the position table holds.

    Raises:
        BaseModelError: not a length, or a position table with no room for a token.
    """
    body = read_body(folder)
    if body.position_limit < 1:
        raise BaseModelError(
            f"{folder / 'config.json'}: max_position_embeddings {body.positions} leaves no position beside pad_token_id {body.pad_id}; "
            "download the model again"
        )
    return min(read_stated_length(folder) or body.position_limit, body.position_limit)


def describe(folder: Path, layout: Layout | None = None) -> Description:
    """Read what a checkpoint folder says of itself; `layout` is pooling and normalization of a folder without modules.json.

    Raises:
        BaseModelError: a file is missing or broken, optbench does not export its pooling, modules.json names a module (such as a dense
            head) that the exported graph would leave out, or a setting changes token ids or vectors and optbench does not apply it.
    """
    body, settings = read_body(folder), read_settings(folder)
    refuse_other_settings(folder)
    if (folder / "modules.json").is_file() or layout is None:
        layout = _read_layout(folder)
    return Description(
        body=body,
        pooling=layout.pooling,
        normalize=layout.normalize,
        prompts=read_prompts(folder),
        max_tokens=read_max_tokens(folder),
        # sentence-transformers keeps a longer embedding whole.
        dimension=settings.dimension if settings.dimension is not None and settings.dimension < body.hidden else None,
        similarity=settings.similarity or "cosine",
        default_prompt=settings.default_prompt,
    )


def _read_layout(folder: Path) -> Layout:
    path = folder / "modules.json"
    if not path.is_file():
        raise BaseModelError(
            f"{path}: missing, so pooling and normalization are unknown; save the model with sentence-transformers, or add the file"
        )
    modules = read_modules(folder)
    kinds = []
    for module in modules:
        package, _, kind = str(module.get("type", "")).rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or kind not in ("Transformer", "Pooling", "Normalize"):
            what = f" ({name})" if (name := name_by_module(kind)) else ""
            raise BaseModelError(
                f"{path}: module {module.get('type')!r} cannot be exported{what}; optbench supports Transformer, Pooling and Normalize of "
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
    for module in modules[2:]:
        normalize = _module_config(folder, str(module.get("path", "2_Normalize")), "normalization")
        for key in ("module_input_name", "module_output_name"):
            if read_object(normalize, required=False).get(key) not in (None, "sentence_embedding"):
                raise BaseModelError(f"{normalize}: {key} is not sentence_embedding; optbench normalizes the embedding only")
    return Layout(_read_pooling(folder, str(modules[1].get("path", "1_Pooling"))), "Normalize" in kinds)


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of `modules.json`.

    Raises:
        BaseModelError: missing, or not a list of objects.
    """
    path = folder / "modules.json"
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BaseModelError(f"{path}: expected a list of modules; download the model again")
    return modules


def _module_config(folder: Path, name: str, what: str) -> Path:
    # The name is checked, not where it leads: the folder's files may be links into a hub cache.
    if not name.isprintable() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise BaseModelError(f"{folder / 'modules.json'}: the {what} path {name!r} points outside the folder; do not use this checkpoint")
    return folder / name / "config.json"


def _read_pooling(folder: Path, name: str) -> Pooling:
    path = _module_config(folder, name, "pooling")
    config = read_object(path)
    if config.get("include_prompt") is False and read_named_prompts(folder):
        raise BaseModelError(f"{path}: include_prompt is false: optbench does not export pooling that leaves out the prompt's tokens")
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if "pooling_mode" in config:
        named = config["pooling_mode"] if isinstance(config["pooling_mode"], list) else [config["pooling_mode"]]
        modes = [f"pooling_mode_{ ({'cls': 'cls_token', 'mean': 'mean_tokens'}.get(str(mode), mode)) }" for mode in named]
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
        SENTENCE_CONFIG: {"max_seq_length": description.max_tokens, "do_lower_case": False},
        MODEL_SETTINGS: model_settings(description, {}),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def model_settings(description: Description, named: Mapping[str, str]) -> dict[str, Any]:
    """What `config_sentence_transformers.json` states of a description, beside other prompts by name."""
    return {
        "prompts": {**named, **description.prompts.model_dump()},
        "default_prompt_name": description.default_prompt,
        "similarity_fn_name": description.similarity,
        **({"truncate_dim": description.dimension} if description.dimension else {}),
    }
