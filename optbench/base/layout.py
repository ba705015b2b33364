"""From a checkpoint's files, wherever they lie, to a folder that agrees with the recipe and holds nothing else."""

import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optbench.artifact.file_types import pickles_among
from optbench.artifact.folder import link_or_copy
from optbench.artifact.manifest import Kind
from optbench.base.tokenizer import settle_tokenizer
from optbench.errors import BaseModelError
from optbench.machine.progress import Progress
from optbench.model.body import BODY_KEYS, OPTIONAL_BODY_KEYS
from optbench.model.checkpoint import Description, Layout, describe, model_settings, read_json, write_layout
from optbench.model.other_kinds import name_by_files, name_other_kind
from optbench.model.safetensors import check_file, copy_rows, find_prefix, merge_shards, read_header
from optbench.model.settings import (
    MODEL_SETTINGS,
    SENTENCE_CONFIG,
    SENTENCE_CONFIGS,
    TOKENIZER_CONFIG,
    Settings,
    find_sentence_config,
    read_named_prompts,
    read_settings,
    read_stated_length,
)

__all__ = [
    "COMPANIONS",
    "INDEX",
    "WEIGHTS",
    "assemble",
    "check_layout",
    "check_names",
    "find_files",
    "read_shard_names",
    "select_names",
]

logger = logging.getLogger(__name__)

COMPANIONS = frozenset(
    {
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "merges.txt",
        "modules.json",
        *SENTENCE_CONFIGS,
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
WEIGHTS = Kind.CHECKPOINT.main_file
INDEX = "model.safetensors.index.json"
# sentence-transformers names a module's folder by its place and type: 1_Pooling.
MODULE_CONFIG = re.compile(r"[0-9]+_[A-Za-z][A-Za-z0-9_]*/config\.json")
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
NUMBERED_SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")

CONFIG_KEYS = {"architecture": "model_type", **BODY_KEYS, **OPTIONAL_BODY_KEYS}


def select_names(names: Iterable[str]) -> list[str]:
    """The file names of a checkpoint that optbench reads: no pickles, exports to other formats or pictures."""
    present = set(names)
    chosen = {name for name in present if name in COMPANIONS or MODULE_CONFIG.fullmatch(name)}
    if WEIGHTS in present:
        chosen.add(WEIGHTS)
    elif INDEX in present:
        chosen |= {INDEX} | {name for name in present if NUMBERED_SHARD.fullmatch(name)}
    return sorted(chosen)


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse an unusable checkpoint before anything is copied or downloaded.

    Raises:
        BaseModelError: lists every file that is missing, each with its cure.
    """
    present = set(names)
    if other := name_by_files(present):
        raise BaseModelError(f"{where}: is {other}")
    problems = []
    if "config.json" not in present:
        problems.append("no config.json: give the folder of a transformers checkpoint")
    if WEIGHTS not in present and INDEX not in present:
        pickles = pickles_among(present)
        found = f"only {', '.join(pickles)}, which may be pickle and can run code" if pickles else f"no {WEIGHTS}"
        problems.append(
            f"{found}: optbench reads safetensors only; if you trust the model, convert it with "
            "AutoModel.from_pretrained(...).save_pretrained(DIR) and give DIR"
        )
    if "tokenizer.json" not in present:
        problems.append("no tokenizer.json: write it with AutoTokenizer.from_pretrained(...).save_pretrained(DIR) and give DIR")
    if problems:
        raise BaseModelError(f"{where}: {'; '.join(problems)}")


def find_files(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint folder that optbench reads, by name.

    Links to weights are followed anywhere (they must parse as safetensors), links to small files only inside the folder or into the
    `blobs` of the hub cache it belongs to: otherwise a stranger's `vocab.txt` could carry a private file into what is published.

    Raises:
        BaseModelError: no such folder, a file is missing, or a link points elsewhere.
    """
    if not folder.is_dir():
        raise BaseModelError(f"path:{folder}: no such folder; give the folder that holds the model's config.json")
    if other := name_other_kind(folder):
        raise BaseModelError(f"path:{folder}: is {other}")
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/config.json")) if path.is_file()]
    check_names(names, f"path:{folder}")
    files = {name: folder / name for name in select_names(names)}
    if WEIGHTS not in files:
        files |= {name: folder / name for name in read_shard_names(files[INDEX]) if (folder / name).is_file()}
    inside = [folder.resolve()]
    if folder.absolute().parent.name == "snapshots":
        # Of the model, and of the store that the cache's models share.
        inside += [(home / "blobs").resolve() for home in folder.absolute().parents[1:3]]
    for name, path in files.items():
        target = path.resolve()
        if not name.endswith(".safetensors") and not any(target.is_relative_to(root) for root in inside):
            raise BaseModelError(f"{path}: a link to {target}, outside the folder; put the file itself there")
    return files


def read_shard_names(index: Path) -> list[str]:
    """The names of the shards in an index.

    Raises:
        BaseModelError: not an index, or a shard that is not a plain file name.
    """
    document = read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BaseModelError(f"{index}: has no weight_map of tensors to files; download the model again")
    names = {str(name) for name in weight_map.values()}
    for name in sorted(names):
        if not SHARD.fullmatch(name):
            raise BaseModelError(f"{index}: names the shard {name!r}, which is not a plain *.safetensors name; do not use this checkpoint")
    return sorted(names)


def assemble(files: Mapping[str, Path], staging: Path, expected: Description, where: str, progress: Progress) -> list[str]:
    """Fill `staging` with a checkpoint that agrees with `expected`, the recipe's description; messages name the source, `where`.

    Returns:
        Warnings for the record.

    Raises:
        BaseModelError: the weights are broken, or the checkpoint contradicts the recipe; lists every contradiction.
    """
    for name, path in files.items():
        if not name.endswith(".safetensors") and name != INDEX:
            target = staging / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)  # never a link: some are edited below
    warnings = _settle_layout(staging, expected, where)
    _place_weights(files, staging, progress)
    return warnings


def _place_weights(files: Mapping[str, Path], staging: Path, progress: Progress) -> None:
    """Put the weights into `staging` as one file, whose tensors have the names that transformers gives the transformer alone."""
    target = staging / WEIGHTS
    if WEIGHTS in files:
        check_file(files[WEIGHTS])
        prefix = find_prefix(read_header(files[WEIGHTS]))
        progress("copying the weights", None)
        if prefix:
            copy_rows(files[WEIGHTS], target, rows={}, prefix=prefix)
        else:
            link_or_copy(files[WEIGHTS].resolve(), target)
        return
    names = read_shard_names(files[INDEX])
    missing = [name for name in names if name not in files]
    if missing:
        raise BaseModelError(f"{files[INDEX]}: names {', '.join(missing)}, which is missing; download the model again")
    merge_shards([files[name] for name in names], target, progress)
    prefix = find_prefix(read_header(target))
    if prefix:
        renamed = staging / f"renamed-{WEIGHTS}"
        copy_rows(target, renamed, rows={}, prefix=prefix)
        renamed.replace(target)


def check_layout(folder: Path, expected: Description, where: str) -> Description:
    """Compare the small files of a checkpoint folder with the recipe; messages name the source, `where`.

    Returns:
        What the folder says; pooling and normalization are the recipe's where it has no modules.json.

    Raises:
        BaseModelError: a file is broken, asks for what optbench does not export, or contradicts the recipe; lists every contradiction.
    """
    try:
        found = describe(folder, Layout(expected.pooling, expected.normalize))
    except BaseModelError as error:  # it may name the staged copy, which is deleted
        raise BaseModelError(str(error).replace(str(folder), where)) from error
    except (AttributeError, TypeError, ValueError) as error:  # a stranger's JSON may hold any type anywhere
        raise BaseModelError(f"{where}: its JSON files differ from what transformers writes ({error}); download the model again") from error
    problems = _contradictions(folder, expected, found)
    if problems:
        raise BaseModelError(
            f"{where}: contradicts the recipe: {'; '.join(problems)}; correct the recipe, or give the base it was written for"
        )
    return found


def _settle_layout(folder: Path, expected: Description, where: str) -> list[str]:
    """Check the small files in `folder` against the recipe, and write what they leave open, the same for every loader."""
    warnings = []
    if not (folder / "modules.json").is_file():
        normalization = "normalization" if expected.normalize else "no normalization"
        warnings.append(f"{where}: has no modules.json; {expected.pooling} pooling and {normalization} come from the recipe")
    check_layout(folder, expected, where)
    _add_missing_layout(folder, expected)
    warnings += settle_tokenizer(folder, where)
    _state_settings(folder, expected)
    check_layout(folder, expected, where)
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def _state_settings(folder: Path, expected: Description) -> None:
    """State the recipe's settings in every file that a loader may read them from."""
    sentence = find_sentence_config(folder)
    stated = read_json(sentence) if sentence is not None else {}
    for name in SENTENCE_CONFIGS:
        (folder / name).unlink(missing_ok=True)
    _edit_json(folder / SENTENCE_CONFIG, {**stated, "max_seq_length": expected.max_tokens})
    _edit_json(folder / MODEL_SETTINGS, model_settings(expected, read_named_prompts(folder)))
    # transformers, fastembed and optimum-intel read the longest input here.
    _edit_json(folder / TOKENIZER_CONFIG, {"model_max_length": expected.max_tokens})


def _add_missing_layout(folder: Path, expected: Description) -> None:
    """Write the missing layout files from the recipe; existing ones still count."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        write_layout(Path(scratch), expected)
        for path in sorted(Path(scratch).rglob("*.json")):
            target = folder / path.relative_to(scratch)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                path.rename(target)


def _contradictions(folder: Path, expected: Description, found: Description) -> list[str]:
    """Every contradiction between the checkpoint and the recipe, with both values."""
    problems = []
    for key, config_key in CONFIG_KEYS.items():
        recipe_value, value = getattr(expected.body, key), getattr(found.body, key)
        if recipe_value != value:
            problems.append(f"body.{key}: the recipe says {recipe_value}, config.json says {value} ({config_key})")
    if expected.pooling != found.pooling:
        problems.append(f"pooling: the recipe says {expected.pooling}, {_pooling_file(folder)} says {found.pooling}")
    if expected.normalize != found.normalize:
        words = {True: "normalized", False: "not normalized"}
        problems.append(f"normalize: the recipe says {words[expected.normalize]}, modules.json says {words[found.normalize]}")
    for side in ("query", "document"):
        recipe_prompt, prompt = getattr(expected.prompts, side), getattr(found.prompts, side)
        # A checkpoint without prompts says nothing: many are older than the file that holds them.
        if prompt and prompt != recipe_prompt:
            problems.append(f"prompts.{side}: the recipe says {recipe_prompt!r}, config_sentence_transformers.json says {prompt!r}")
    if expected.max_tokens > found.max_tokens:
        problems.append(f"max_tokens: the recipe says {expected.max_tokens}, {_length_file(folder, found)} allows {found.max_tokens}")
    return problems + _setting_contradictions(expected, found, read_settings(folder))


def _length_file(folder: Path, found: Description) -> str:
    """What limits the input to `found.max_tokens`."""
    if (read_stated_length(folder) or math.inf) > found.body.position_limit:
        return "the position table in config.json"
    sentence = find_sentence_config(folder)
    if sentence is not None and read_json(sentence).get("max_seq_length") is not None:
        return f"{sentence.name} (max_seq_length)"
    return f"{TOKENIZER_CONFIG} (model_max_length)"


def _setting_contradictions(expected: Description, found: Description, stated: Settings) -> list[str]:
    """A setting that the checkpoint does not state is the recipe's to choose, and so is a smaller dimension."""
    problems = []
    if found.dimension is not None and (expected.dimension or expected.body.hidden) > found.dimension:
        says = f"{expected.dimension or 'all'} components"
        problems.append(f"dimension: the recipe says {says}, {MODEL_SETTINGS} says {found.dimension} (truncate_dim)")
    if stated.similarity is not None and stated.similarity != expected.similarity:
        problems.append(
            f"similarity: the recipe says {expected.similarity}, {MODEL_SETTINGS} says {stated.similarity} (similarity_fn_name)"
        )
    if stated.default_prompt is not None and stated.default_prompt != expected.default_prompt:
        says = expected.default_prompt or "none"
        problems.append(f"default_prompt: the recipe says {says}, {MODEL_SETTINGS} says {stated.default_prompt} (default_prompt_name)")
    return problems


def _pooling_file(folder: Path) -> str:
    for module in read_json(folder / "modules.json"):
        if str(module.get("type", "")).endswith("Pooling"):
            return f"{module.get('path', '1_Pooling')}/config.json"
    return "modules.json"


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    document = read_json(path) if path.is_file() else {}
    path.write_text(json.dumps({**document, **changes}, indent=2) + "\n", encoding="utf-8")
