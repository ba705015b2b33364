"""From a checkpoint's files, wherever they lie, to a folder that holds what the recipe says and nothing else."""

import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optbench.artifact.folder import Kind
from optbench.errors import BaseModelError
from optbench.machine.progress import Progress
from optbench.model.checkpoint import BODY_KEYS, OPTIONAL_BODY_KEYS, Description, describe, read_json, write_layout
from optbench.model.safetensors import check_file, merge_shards

__all__ = ["COMPANIONS", "INDEX", "WEIGHTS", "assemble", "check_names", "find_files", "read_shard_names", "select_names"]

logger = logging.getLogger(__name__)

COMPANIONS = frozenset(
    {
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "merges.txt",
        "modules.json",
        "sentence_bert_config.json",
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
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")

CONFIG_KEYS = {"architecture": "model_type", **BODY_KEYS, **OPTIONAL_BODY_KEYS}


def select_names(names: Iterable[str]) -> list[str]:
    """Of a checkpoint's file names, those that optbench reads: no pickles, other formats' exports or pictures."""
    present = set(names)
    chosen = {name for name in present if name in COMPANIONS or MODULE_CONFIG.fullmatch(name)}
    if WEIGHTS in present:
        chosen.add(WEIGHTS)
    elif INDEX in present:
        chosen |= {INDEX} | {name for name in present if NUMBERED_SHARD.fullmatch(name)}
    return sorted(chosen)


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse a checkpoint that cannot be used, before anything is copied or downloaded.

    Raises:
        BaseModelError: lists every file that is missing, each with its cure.
    """
    present = set(names)
    problems = []
    if "config.json" not in present:
        problems.append("no config.json: name the folder of a transformers checkpoint")
    if WEIGHTS not in present and INDEX not in present:
        pickles = sorted(name for name in present if "/" not in name and name.endswith(PICKLES) and name != "training_args.bin")
        found = f"only {', '.join(pickles)}, which may be pickle and can run code" if pickles else f"no {WEIGHTS}"
        problems.append(
            f"{found}: optbench reads safetensors only; where you trust the model, convert it with "
            "AutoModel.from_pretrained(...).save_pretrained(DIR) and give --base path:DIR"
        )
    if "tokenizer.json" not in present:
        problems.append("no tokenizer.json: write it with AutoTokenizer.from_pretrained(...).save_pretrained(DIR) and give --base path:DIR")
    if problems:
        raise BaseModelError(f"{where}: {'; '.join(problems)}")


def find_files(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint folder that optbench reads, by name.

    Links are followed to weights anywhere (they must parse as safetensors), and to small files only inside the folder or
    into the `blobs` of the hub cache it belongs to: else a stranger's `vocab.txt` could carry a private file into what is published.

    Raises:
        BaseModelError: no such folder, a file is missing, or a link points elsewhere.
    """
    if not folder.is_dir():
        raise BaseModelError(f"path:{folder}: no such folder; give the folder that holds the model's config.json")
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/config.json")) if path.is_file()]
    check_names(names, f"path:{folder}")
    files = {name: folder / name for name in select_names(names)}
    if WEIGHTS not in files:
        files |= {name: folder / name for name in read_shard_names(files[INDEX]) if (folder / name).is_file()}
    inside = [folder.resolve()]
    if folder.absolute().parent.name == "snapshots":
        inside.append((folder.absolute().parents[1] / "blobs").resolve())
    for name, path in files.items():
        target = path.resolve()
        if not name.endswith(".safetensors") and not any(target.is_relative_to(root) for root in inside):
            raise BaseModelError(f"{path}: a link to {target}, outside the folder; put the file itself there")
    return files


def read_shard_names(index: Path) -> list[str]:
    """The shards that an index names.

    Raises:
        BaseModelError: not an index, or a name that is not a plain file name.
    """
    document = read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BaseModelError(f"{index}: has no weight_map of tensors to files; fetch the model anew")
    names = {str(name) for name in weight_map.values()}
    for name in sorted(names):
        if not SHARD.fullmatch(name):
            raise BaseModelError(f"{index}: names the shard {name!r}, which is not a plain *.safetensors name; do not use this checkpoint")
    return sorted(names)


def assemble(files: Mapping[str, Path], staging: Path, wanted: Description, where: str, progress: Progress) -> list[str]:
    """Fill `staging` with a checkpoint that agrees with the recipe.

    Args:
        files: what `find_files` or a download gave.
        staging: an empty folder.
        wanted: the recipe's word.
        where: the source, for messages.
        progress: told of what takes long.

    Returns:
        Warnings for the record.

    Raises:
        BaseModelError: broken weights, or the checkpoint contradicts the recipe; lists every contradiction.
    """
    for name, path in files.items():
        if not name.endswith(".safetensors") and name != INDEX:
            target = staging / name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)  # never a link: some are edited below
    warnings = _settle_layout(staging, wanted, where)
    _place_weights(files, staging, progress)
    return warnings


def _place_weights(files: Mapping[str, Path], staging: Path, progress: Progress) -> None:
    if WEIGHTS in files:
        check_file(files[WEIGHTS])
        progress("taking over the weights", None)
        _link_or_copy(files[WEIGHTS].resolve(), staging / WEIGHTS)
        return
    names = read_shard_names(files[INDEX])
    missing = [name for name in names if name not in files]
    if missing:
        raise BaseModelError(f"{files[INDEX]}: names {', '.join(missing)}, which is missing; fetch the model anew")
    merge_shards([files[name] for name in names], staging / WEIGHTS, progress)


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link costs no space; a copy is made where there can be none.

    Whoever later writes into the source's bytes changes the artifact too: its verification finds that, and it is made anew.
    """
    try:
        os.link(source, target)
    except OSError as error:
        # Another file system, one without hard links, or a file that is not ours (fs.protected_hardlinks).
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        shutil.copyfile(source, target)


def _settle_layout(folder: Path, wanted: Description, where: str) -> list[str]:
    """Check the small files in `folder` against the recipe, and write what they leave open."""
    warnings = []
    if not (folder / "modules.json").is_file():
        normalization = "normalization" if wanted.normalize else "no normalization"
        warnings.append(f"{where}: has no modules.json; {wanted.pooling} pooling and {normalization} are the recipe's word")
        _add_missing_layout(folder, wanted)
    try:
        found = describe(folder)
    except BaseModelError as error:  # it names the staged copy, which is gone when the user reads of it
        raise BaseModelError(str(error).replace(str(folder), where)) from error
    except (AttributeError, TypeError, ValueError) as error:  # a stranger's JSON may hold any type anywhere
        raise BaseModelError(f"{where}: its JSON files are not as transformers writes them ({error}); fetch the model anew") from error
    problems = _contradictions(folder, wanted, found)
    if problems:
        raise BaseModelError(
            f"{where}: contradicts the recipe: {'; '.join(problems)}; correct the recipe, or name the base it was written for"
        )
    if found.max_tokens != wanted.max_tokens:
        _edit_json(folder / "sentence_bert_config.json", {"max_seq_length": wanted.max_tokens})
    if found.prompts != wanted.prompts:
        _edit_json(folder / "config_sentence_transformers.json", {"prompts": wanted.prompts.model_dump()})
    lowercase = folder / "sentence_bert_config.json"
    if lowercase.is_file() and read_json(lowercase).get("do_lower_case"):
        warnings.append(f"{where}: sentence_bert_config.json asks for lower case, which is left to tokenizer.json: check that it does it")
    for warning in warnings:
        logger.warning("%s", warning)
    return warnings


def _add_missing_layout(folder: Path, wanted: Description) -> None:
    """Write the layout files that are absent, from the recipe; those that are there still have their say."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        write_layout(Path(scratch), wanted)
        for path in sorted(Path(scratch).rglob("*.json")):
            target = folder / path.relative_to(scratch)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                path.rename(target)


def _contradictions(folder: Path, wanted: Description, found: Description) -> list[str]:
    """Every point where the checkpoint says otherwise than the recipe, with both words."""
    problems = []
    for key, config_key in CONFIG_KEYS.items():
        recipe_value, value = getattr(wanted.body, key), getattr(found.body, key)
        if recipe_value != value:
            problems.append(f"body.{key}: the recipe says {recipe_value}, config.json says {value} ({config_key})")
    if wanted.pooling != found.pooling:
        problems.append(f"pooling: the recipe says {wanted.pooling}, {_pooling_file(folder)} says {found.pooling}")
    if wanted.normalize != found.normalize:
        words = {True: "normalized", False: "not normalized"}
        problems.append(f"normalize: the recipe says {words[wanted.normalize]}, modules.json says {words[found.normalize]}")
    for side in ("query", "document"):
        recipe_prompt, prompt = getattr(wanted.prompts, side), getattr(found.prompts, side)
        # A checkpoint without prompts says nothing: many were uploaded before there was a place for them.
        if prompt and prompt != recipe_prompt:
            problems.append(f"prompts.{side}: the recipe says {recipe_prompt!r}, config_sentence_transformers.json says {prompt!r}")
    if wanted.max_tokens > found.max_tokens:
        source = "sentence_bert_config.json" if (folder / "sentence_bert_config.json").is_file() else "the position table in config.json"
        problems.append(f"max_tokens: the recipe says {wanted.max_tokens}, {source} allows {found.max_tokens}")
    return problems


def _pooling_file(folder: Path) -> str:
    for module in read_json(folder / "modules.json"):
        if str(module.get("type", "")).endswith("Pooling"):
            return f"{module.get('path', '1_Pooling')}/config.json"
    return "modules.json"


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    document = read_json(path) if path.is_file() else {}
    path.write_text(json.dumps({**document, **changes}, indent=2) + "\n", encoding="utf-8")
