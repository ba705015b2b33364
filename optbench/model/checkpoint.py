"""A Hugging Face checkpoint folder: what model it holds, described without torch; `torch_model` builds it.

The layout is sentence-transformers': `config.json` and `model.safetensors` of the transformer, `modules.json` naming the
modules in order, `1_Pooling/config.json`, prompts in `config_sentence_transformers.json`, the longest input in
`sentence_bert_config.json`.
"""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from optbench.artifact.folder import LayerSize
from optbench.errors import BaseModelError
from optbench.machine.frozen import Frozen

__all__ = [
    "BODY_KEYS",
    "OPTIONAL_BODY_KEYS",
    "Body",
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
# A config or modules file is some kilobytes; the bound keeps a hostile one out of memory.
JSON_BYTES_MAX = 16 * 1024 * 1024
ARCHITECTURES = MappingProxyType({"bert": "BertModel", "xlm-roberta": "XLMRobertaModel", "roberta": "RobertaModel", "mpnet": "MPNetModel"})
# Keys of config.json that make transformers run code from the checkpoint, read weights elsewhere, or read them as something else.
REFUSED_KEYS = MappingProxyType(
    {
        "auto_map": "asks to run code from the checkpoint, which optbench never does",
        "transformers_weights": "names a weight file of its own; name the weights model.safetensors and remove the key",
        "quantization_config": "says that the weights are quantized already; give the unquantized model",
    }
)
BODY_KEYS = MappingProxyType(
    {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    }
)
OPTIONAL_BODY_KEYS = MappingProxyType(
    {
        "type_vocabulary": "type_vocab_size",
        "layer_norm_epsilon": "layer_norm_eps",
        "pad_id": "pad_token_id",
        # optbench's own, for a body whose layers differ; transformers has no such config.
        "layer_heads": "layer_num_attention_heads",
        "layer_feed_forward": "layer_intermediate_size",
        "position_bias_heads": "layer_position_bias_heads",
    }
)

Count = Annotated[int, Field(ge=1, le=1048576)]


class Body(Frozen):
    """The shape of a transformer encoder."""

    architecture: Literal["BertModel", "XLMRobertaModel", "RobertaModel", "MPNetModel"] = Field(description="The transformers class.")
    layers: int = Field(ge=1, le=256, description="Transformer layers.")
    hidden: int = Field(ge=1, le=65536, description="Width of the residual stream; the embedding's dimension.")
    heads: int = Field(ge=1, le=1024, description="Attention heads of a layer.")
    feed_forward: int = Field(ge=1, le=1048576, description="Width of the feed-forward layer.")
    vocabulary: int = Field(ge=1, le=10_000_000, description="Rows of the embedding table.")
    positions: int = Field(ge=1, le=1_000_000, description="Rows of the position table.")
    type_vocabulary: int = Field(default=1, ge=1, le=64, description="Rows of the token type table.")
    layer_norm_epsilon: float = Field(default=1e-12, gt=0, lt=1, description="Added to the variance that LayerNorm divides by.")
    pad_id: int = Field(default=0, ge=0, description="The padding token's id; RoBERTa-like models count positions from it.")
    layer_heads: tuple[Count, ...] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Heads of each layer where layers differ; each head is hidden / heads wide.",
    )
    layer_feed_forward: tuple[Count, ...] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Feed-forward width of each layer where layers differ."
    )

    position_bias_heads: tuple[tuple[int, ...], ...] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="MPNet with fewer heads: the columns of the shared position bias that each layer's heads read.",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for name, sizes, most in (
            ("layer_heads", self.layer_heads, self.heads),
            ("layer_feed_forward", self.layer_feed_forward, self.feed_forward),
        ):
            if sizes is not None and (len(sizes) != self.layers or max(sizes) > most):
                raise ValueError(f"{name} {list(sizes)}: {self.layers} sizes of at most {most} are wanted, one a layer")
        columns = self.position_bias_heads
        if columns is not None and (
            tuple(len(layer) for layer in columns) != self.heads_by_layer
            or any(not 0 <= column < self.heads for layer in columns for column in layer)
        ):
            raise ValueError(f"position_bias_heads: one column below {self.heads} is wanted for each head of each layer")
        return self

    @property
    def is_pruned(self) -> bool:
        """Whether layers differ, or have fewer heads than their width says: a body that transformers cannot build by itself."""
        return self.layer_heads is not None or self.layer_feed_forward is not None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def heads_by_layer(self) -> tuple[int, ...]:
        """Attention heads of each layer."""
        return self.layer_heads or (self.heads,) * self.layers

    @property
    def feed_forward_by_layer(self) -> tuple[int, ...]:
        """Feed-forward width of each layer."""
        return self.layer_feed_forward or (self.feed_forward,) * self.layers

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heads and feed-forward width of each layer."""
        return tuple(zip(self.heads_by_layer, self.feed_forward_by_layer, strict=True))

    @property
    def layer_sizes(self) -> tuple[LayerSize, ...]:
        """What the manifest says of a pruned body's layers; nothing of one whose layers are alike."""
        if not self.is_pruned:
            return ()
        return tuple(LayerSize(heads=heads, feed_forward=feed_forward) for heads, feed_forward in self.sizes)

    @property
    def weights(self) -> int:
        """Weights in the matrix products: per layer four of attention and two of the feed-forward; the tables are left out."""
        attention = 4 * self.head_size * sum(self.heads_by_layer)
        return self.hidden * (attention + 2 * sum(self.feed_forward_by_layer))

    @property
    def parameters(self) -> int:
        """Parameters of the body with its tables, without a pooler head."""
        tables = (self.vocabulary + self.positions + self.type_vocabulary + 2) * self.hidden
        biases = 3 * self.head_size * sum(self.heads_by_layer) + sum(self.feed_forward_by_layer) + 6 * self.hidden * self.layers
        return tables + self.weights + biases


class Prompts(Frozen):
    """Text put before a query and before a document; empty for none."""

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
            raise BaseModelError(f"{path}: larger than {JSON_BYTES_MAX} bytes, which no such file is; fetch the model anew")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaseModelError(f"{path}: {error.strerror}; a checkpoint folder holds it: fetch the model anew") from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path}: not JSON ({error}); the file may be truncated: fetch the model anew") from error


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise BaseModelError(f"{path}: a JSON {type(value).__name__}, an object is wanted; fetch the model anew")
    return value


def read_body(folder: Path) -> Body:
    """The transformer's shape, from `config.json`.

    Raises:
        BaseModelError: an architecture that optbench does not export, a key that is missing, broken, or refused.
    """
    path = folder / "config.json"
    config = _read_object(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise BaseModelError(f"{path}: model_type {model_type!r}; optbench knows {', '.join(ARCHITECTURES)}")
    for key, reason in REFUSED_KEYS.items():
        if config.get(key) is not None:
            raise BaseModelError(f"{path}: {key} {reason}")
    missing = [key for key in BODY_KEYS.values() if key not in config]
    if missing:
        raise BaseModelError(f"{path}: lacks {', '.join(missing)}; the file is not a whole config: fetch the model anew")
    values = {name: config[key] for name, key in BODY_KEYS.items()}
    values |= {name: config[key] for name, key in OPTIONAL_BODY_KEYS.items() if key in config}
    # Strict validation takes no list for a tuple, and JSON has no other.
    values = {name: _as_tuples(value) for name, value in values.items()}
    # transformers' own defaults for what a config may leave out.
    values.setdefault("type_vocabulary", 1 if model_type == "mpnet" else 2)
    values.setdefault("pad_id", 0 if model_type == "bert" else 1)
    try:
        return Body.model_validate({"architecture": ARCHITECTURES[model_type], **values}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise BaseModelError(f"{path}: {first['msg'].removeprefix('Value error, ')}; fetch the model anew") from error
        key = {**BODY_KEYS, **OPTIONAL_BODY_KEYS}[str(first["loc"][0])]
        raise BaseModelError(f"{path}: {key} is {first['input']!r}: {first['msg']}; fetch the model anew") from error


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def read_named_prompts(folder: Path) -> dict[str, str]:
    """Every prompt in `config_sentence_transformers.json` by its name; none where the file is missing.

    Raises:
        BaseModelError: something that is not a text.
    """
    path = folder / "config_sentence_transformers.json"
    prompts = (_read_object(path).get("prompts") or {}) if path.is_file() else {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise BaseModelError(f"{path}: prompts {json.dumps(prompts)[:80]}; texts by name are wanted: correct the file")
    return prompts


def read_prompts(folder: Path) -> Prompts:
    """The prompts of `read_named_prompts` for a query and a document."""
    prompts = read_named_prompts(folder)
    # sentence-transformers writes "passage" or "document" for the document side, as the authors chose.
    return Prompts(query=prompts.get("query", ""), document=prompts.get("document", prompts.get("passage", "")))


def read_max_tokens(folder: Path) -> int:
    """The longest input in tokens: `sentence_bert_config.json`, else what the position table holds.

    Raises:
        BaseModelError: not a length, or a position table with no room for a token.
    """
    body = read_body(folder)
    # RoBERTa-like models spend the first pad_id + 1 rows of the position table on padding.
    room = body.positions - (0 if body.architecture == "BertModel" else body.pad_id + 1)
    if room < 1:
        raise BaseModelError(
            f"{folder / 'config.json'}: max_position_embeddings {body.positions} leaves no position beside pad_token_id {body.pad_id}; "
            "fetch the model anew"
        )
    path = folder / "sentence_bert_config.json"
    length = _read_object(path).get("max_seq_length") if path.is_file() else None
    if length is None:
        return room
    if not isinstance(length, int) or length < 1:
        raise BaseModelError(f"{path}: max_seq_length is {length!r}; a number of tokens is wanted: correct the file")
    return min(length, room)


def describe(folder: Path) -> Description:
    """Read what a checkpoint folder says of itself.

    Raises:
        BaseModelError: a file is missing or broken, the pooling is not one optbench exports, or modules.json names a
            module (a dense head, say) that the exported graph would silently leave out.
    """
    path = folder / "modules.json"
    if not path.is_file():
        raise BaseModelError(
            f"{path}: missing, so pooling and normalization are unknown; save the model with sentence-transformers, or add it"
        )
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BaseModelError(f"{path}: a list of modules is wanted; fetch the model anew")
    kinds = []
    for module in modules:
        package, _, kind = str(module.get("type", "")).rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or kind not in ("Transformer", "Pooling", "Normalize"):
            raise BaseModelError(
                f"{path}: module {module.get('type')!r} cannot be exported; optbench knows Transformer, Pooling and Normalize of "
                "sentence-transformers"
            )
        kinds.append(kind)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BaseModelError(
            f"{path}: modules {', '.join(kinds) or 'none'}; wanted are Transformer, Pooling and perhaps Normalize, once each"
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
    # Compared as it is written: the folder's own files may be links, into a hub cache for one.
    if not name.isprintable() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise BaseModelError(f"{folder / 'modules.json'}: the pooling path {name!r} points outside the folder; do not use this checkpoint")
    path = folder / name / "config.json"
    config = _read_object(path)
    if config.get("include_prompt") is False and read_named_prompts(folder):
        raise BaseModelError(f"{path}: include_prompt is false: pooling that leaves out the prompt's tokens is not exported by optbench")
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(config.get("pooling_mode"), str):
        modes = ["pooling_mode_" + {"cls": "cls_token", "mean": "mean_tokens"}.get(config["pooling_mode"], config["pooling_mode"])]
    if modes == ["pooling_mode_mean_tokens"]:
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise BaseModelError(f"{path}: {' and '.join(modes) or 'no pooling mode'}; optbench exports mean or cls pooling")


def write_layout(folder: Path, description: Description) -> None:
    """Write the sentence-transformers layout files that say how `folder` pools, normalizes and prompts."""
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
