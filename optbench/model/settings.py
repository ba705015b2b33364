"""The settings that sentence-transformers and transformers read from a checkpoint's small files, besides its modules.

Prompts, longest input, dimension and similarity are read in the order of sentence-transformers 6.2. Any other setting that would change
token ids or vectors is refused by file and key: optbench does not apply it, and would give other vectors without a word.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from optbench.errors import BaseModelError
from optbench.machine.frozen import Frozen
from optbench.model.json_file import read_object

__all__ = [
    "MODEL_SETTINGS",
    "SENTENCE_CONFIG",
    "SENTENCE_CONFIGS",
    "TOKENIZER_CONFIG",
    "Prompts",
    "Settings",
    "Similarity",
    "find_sentence_config",
    "lowercases_first",
    "read_named_prompts",
    "read_prompts",
    "read_settings",
    "read_stated_length",
    "refuse_other_settings",
]

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
"""How two embeddings of a model are compared: euclidean and manhattan are negative distances."""

MODEL_SETTINGS = "config_sentence_transformers.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SENTENCE_CONFIG = "sentence_bert_config.json"
# The first of these that is there and not empty counts: sentence_transformers 6.2, base/modules/transformer.py, Transformer.load_config.
SENTENCE_CONFIGS = (
    SENTENCE_CONFIG,
    *(f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")),
)
# What sentence-transformers passes to from_pretrained, and the options there that change no vector in float32.
FORWARDED = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
HARMLESS = frozenset(
    {
        *("torch_dtype", "dtype", "attn_implementation", "device_map", "low_cpu_mem_usage", "use_safetensors", "add_pooling_layer"),
        *("trust_remote_code", "use_fast", "cache_dir", "local_files_only"),
    }
)
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


class Prompts(Frozen):
    """Prefixes of queries and documents; empty for none."""

    query: str = Field(default="", description="Before every query, its trailing space included.")
    document: str = Field(default="", description="Before every document.")


class Settings(Frozen):
    """What `config_sentence_transformers.json` says.

    Attributes:
        default_prompt: the name of the prompt that is prepended where none is named.
        dimension: leading components that are kept, after normalization; None for all.
        similarity: None where the file does not say.
    """

    default_prompt: str | None = None
    dimension: int | None = None
    similarity: Similarity | None = None


def read_named_prompts(folder: Path) -> dict[str, str]:
    """Every prompt in `config_sentence_transformers.json` by its name; none where the file is missing.

    Raises:
        BaseModelError: a prompt is not a string.
    """
    path = folder / MODEL_SETTINGS
    prompts = read_object(path, required=False).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise BaseModelError(f"{path}: prompts {json.dumps(prompts)[:80]}; expected an object of strings: correct the file")
    return {name: text or "" for name, text in prompts.items()}


def read_prompts(folder: Path) -> Prompts:
    """The prompts of `read_named_prompts` for a query and a document.

    Authors name the document side `document` or `passage`. sentence-transformers' `encode_document` uses the first name only.
    """
    prompts = read_named_prompts(folder)
    return Prompts(query=prompts.get("query", ""), document=prompts.get("document", prompts.get("passage", "")))


def read_settings(folder: Path) -> Settings:
    """What `config_sentence_transformers.json` says of the default prompt, the dimension and the similarity.

    Raises:
        BaseModelError: another kind of model, or a value that sentence-transformers does not know.
    """
    path = folder / MODEL_SETTINGS
    config = read_object(path, required=False)
    kind = config.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise BaseModelError(f"{path}: model_type is {kind!r}; optbench takes a SentenceTransformer, one vector for a text")
    name = config.get("default_prompt_name")
    known = {"query": "", "document": "", **read_named_prompts(folder)}
    if name is not None and (not isinstance(name, str) or name not in known):
        raise BaseModelError(f"{path}: default_prompt_name is {name!r}; expected one of {', '.join(known)}: correct the file")
    dimension = config.get("truncate_dim")
    if dimension is not None and not _is_count(dimension):
        raise BaseModelError(f"{path}: truncate_dim is {dimension!r}; expected a number of components: correct the file")
    similarity = config.get("similarity_fn_name")
    if similarity is not None and similarity not in get_args(Similarity):
        raise BaseModelError(f"{path}: similarity_fn_name is {similarity!r}; expected {', '.join(get_args(Similarity))}: correct the file")
    return Settings(default_prompt=name, dimension=dimension, similarity=similarity)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def find_sentence_config(folder: Path) -> Path | None:
    """The file of `SENTENCE_CONFIGS` that counts; None where there is none."""
    return next((folder / name for name in SENTENCE_CONFIGS if read_object(folder / name, required=False)), None)


def read_stated_length(folder: Path) -> int | None:
    """The longest input in tokens that the files state: the sentence config's, else the tokenizer's; None where neither does.

    Raises:
        BaseModelError: not a length.
    """
    sentence = find_sentence_config(folder)
    if sentence is not None and (length := _read_length(sentence, "max_seq_length")) is not None:
        return length
    tokenizer = folder / TOKENIZER_CONFIG
    for key in ("model_max_length", "max_len"):
        if (length := _read_length(tokenizer, key)) is not None:
            return length
    return None


def _read_length(path: Path, key: str) -> int | None:
    value = read_object(path, required=False).get(key)
    if value is None:
        return None
    # transformers writes 1e30 for "no limit".
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    if not _is_count(value):
        raise BaseModelError(f"{path}: {key} is {value!r}; expected a number of tokens: correct the file")
    return int(value)


def lowercases_first(folder: Path) -> bool:
    """Whether the sentence config asks for lower case before the tokenizer's own normalization."""
    sentence = find_sentence_config(folder)
    return sentence is not None and bool(read_object(sentence).get("do_lower_case"))


def refuse_other_settings(folder: Path) -> None:
    """Refuse settings that change token ids or vectors and that optbench does not apply.

    Raises:
        BaseModelError: names the first file and key.
    """
    sentence = find_sentence_config(folder)
    if sentence is not None:
        _refuse_sentence_settings(sentence, read_object(sentence))
    path = folder / TOKENIZER_CONFIG
    tokenizer = read_object(path, required=False)
    if tokenizer.get("truncation_side", "right") != "right":
        raise BaseModelError(f"{path}: truncation_side is {tokenizer['truncation_side']!r}; optbench keeps the beginning of a long text")
    if tokenizer.get("split_special_tokens"):
        raise BaseModelError(
            f"{path}: split_special_tokens is set; tokenizer.json, which every loader reads, cannot say it: remove the key"
        )
    if tokenizer.get("fast_tokenizer_files"):
        raise BaseModelError(
            f"{path}: fast_tokenizer_files names another tokenizer by version; save the model again with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(DIR)"
        )


def _refuse_sentence_settings(path: Path, config: Mapping[str, Any]) -> None:
    task = config.get("transformer_task")
    if task not in (None, "feature-extraction"):
        raise BaseModelError(f"{path}: transformer_task is {task!r}; optbench takes feature-extraction, the task of text embeddings")
    if config.get("modality_config") not in (None, TEXT_ONLY) or config.get("module_output_name") not in (None, "token_embeddings"):
        raise BaseModelError(
            f"{path}: modality_config and module_output_name ask for another input or output than text and token_embeddings; "
            "optbench exports text encoders"
        )
    for key in ("processing_kwargs", "query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        if config.get(key):
            raise BaseModelError(f"{path}: {key} is set, which changes the token ids; optbench does not apply it: remove the key")
    for key in FORWARDED:
        options = config.get(key) or {}
        # The configs of one family differ: an option of the tokenizer or the config may change anything.
        changing = sorted(set(options) - HARMLESS) if isinstance(options, dict) else [str(options)]
        if changing:
            raise BaseModelError(
                f"{path}: {key} passes {', '.join(changing)} to transformers, which optbench does not apply: write it into the file that "
                "it changes (config.json or tokenizer_config.json), and remove it here"
            )
