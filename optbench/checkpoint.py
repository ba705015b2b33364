"""A Hugging Face checkpoint folder: what model it holds, described without torch and built with it.

The layout is sentence-transformers': `config.json` and `model.safetensors` of the transformer, `modules.json` naming the
modules in order, `1_Pooling/config.json`, prompts in `config_sentence_transformers.json`, the longest input in
`sentence_bert_config.json`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optbench.errors import BaseModelError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Body",
    "Description",
    "Pooling",
    "Prompts",
    "build_module",
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
    {"type_vocabulary": "type_vocab_size", "layer_norm_epsilon": "layer_norm_eps", "pad_id": "pad_token_id"}
)


class Body(BaseModel):
    """The shape of a transformer encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["BertModel", "XLMRobertaModel", "RobertaModel", "MPNetModel"] = Field(description="The transformers class.")
    layers: int = Field(ge=1, le=256)
    hidden: int = Field(ge=1, le=65536, description="Width of the residual stream; the embedding's dimension.")
    heads: int = Field(ge=1, le=1024)
    feed_forward: int = Field(ge=1, le=1048576, description="Width of the feed-forward layer.")
    vocabulary: int = Field(ge=1, le=10_000_000)
    positions: int = Field(ge=1, le=1_000_000, description="Rows of the position table.")
    type_vocabulary: int = Field(default=1, ge=1, le=64)
    layer_norm_epsilon: float = Field(default=1e-12, gt=0, lt=1)
    pad_id: int = Field(default=0, ge=0)

    @property
    def parameters(self) -> int:
        """Parameters of the body with its tables, without a pooler head."""
        h, f = self.hidden, self.feed_forward
        tables = (self.vocabulary + self.positions + self.type_vocabulary) * h + 2 * h
        layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
        return tables + self.layers * layer


class Prompts(BaseModel):
    """Text put before a query and before a document; empty for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str = ""
    document: str = ""


class Description(BaseModel):
    """What a checkpoint folder says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    # transformers' own defaults for what a config may leave out.
    values.setdefault("type_vocabulary", 1 if model_type == "mpnet" else 2)
    values.setdefault("pad_id", 0 if model_type == "bert" else 1)
    try:
        return Body.model_validate({"architecture": ARCHITECTURES[model_type], **values}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = {**BODY_KEYS, **OPTIONAL_BODY_KEYS}[str(first["loc"][0])]
        raise BaseModelError(f"{path}: {key} is {first['input']!r}: {first['msg']}; fetch the model anew") from error


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


def build_module(folder: Path) -> "torch.nn.Module":
    """Build the torch module of a checkpoint: transformer, pooling and normalization in one.

    Its `forward(input_ids, attention_mask)` takes (batch, tokens) int64 and returns `last_hidden_state`
    (batch, tokens, hidden) and `sentence_embedding` (batch, hidden), float32. Attention is eager: the only form that
    exports to plain MatMul and Softmax on every version.

    Raises:
        BaseModelError: the folder is not a whole checkpoint, or its weights do not fit its config.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel

    description = describe(folder)
    if not (folder / "model.safetensors").is_file():
        pickles = ", ".join(sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)))
        found = f"only {pickles}, which is a pickle and can run code" if pickles else "no model.safetensors"
        raise BaseModelError(f"{folder}: {found}; optbench reads safetensors: convert it with transformers' save_pretrained")
    try:
        with _quiet_transformers():
            body, loading = AutoModel.from_pretrained(
                folder,
                attn_implementation="eager",
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise BaseModelError(f"{folder}: its weights cannot be loaded: {error}; fetch the model anew") from error
    # transformers fills what is missing with random numbers and only warns.
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise BaseModelError(f"{folder}: the weights lack {', '.join(missing[:5])} ({len(missing)} in all); fetch the model anew")

    class SentenceEmbedder(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            if description.pooling == "cls":
                pooled = hidden[:, 0]
            else:
                mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            if description.normalize:
                pooled = torch.nn.functional.normalize(pooled, p=2.0, dim=1)
            return hidden, pooled

    # The pooler head feeds no output; dropping it frees 4 MB per million of hidden squared and keeps it out of the graph.
    if hasattr(body, "pooler"):
        body.pooler = None
    return SentenceEmbedder().eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep its progress bar and its table of missing weights off stderr: what is missing is an error here."""
    from transformers.utils import logging

    def without_bar(factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return factory(*args, **{**options, "disable": True})

    hook, verbosity = logging.set_tqdm_hook(without_bar), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(verbosity)
