"""One tokenizer.json that says all that transformers would read from a checkpoint's tokenizer files.

transformers 5 builds the tokenizer of a known class from the vocabulary and the options of tokenizer_config.json, special_tokens_map.json
and added_tokens.json, whatever the normalizer, pre-tokenizer and post-processor of tokenizer.json are. sentence-transformers may put
`do_lower_case` before it. An artifact's loaders read tokenizer.json alone, so the result is written there.
"""

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.base.conformance_texts import conformance_texts
from optbench.errors import BaseModelError
from optbench.machine.extras import require_extra
from optbench.machine.progress import Progress
from optbench.machine.worker import Worker
from optbench.model.checkpoint import read_body
from optbench.model.settings import TOKENIZER_CONFIG, lowercases_first
from optbench.model.torch_model import quiet_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["differing_parts", "reference_tokenizer", "settle_tokenizer"]

# The parts of tokenizer.json that decide on ids, and what in the other files changes each.
PARTS = {
    "normalizer": "do_lower_case, strip_accents or tokenize_chinese_chars",
    "pre_tokenizer": "tokenizer_class or add_prefix_space",
    "model": "tokenizer_class or unk_token",
    "post_processor": "tokenizer_class, add_bos_token or add_eos_token",
    "added_tokens": "a special token, also in special_tokens_map.json or added_tokens.json",
}


def reference_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer that transformers builds from a folder's files, with sentence-transformers' lower case; it neither truncates nor pads.

    Raises:
        BaseModelError: transformers cannot load it.
    """
    import transformers
    from tokenizers.normalizers import Lowercase, Sequence

    try:
        with quiet_transformers():
            loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer: Tokenizer = loaded.backend_tokenizer
    except Exception as error:  # any of its classes may fail in its own way on a stranger's files
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise BaseModelError(
            f"{folder / 'tokenizer.json'}: transformers {transformers.__version__} cannot load this tokenizer ({reason[:300]}); "
            f"check tokenizer_class in {TOKENIZER_CONFIG}, or save it again with AutoTokenizer.from_pretrained(...).save_pretrained(DIR)"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # sentence_transformers 6.2, base/modules/transformer.py: Lowercase itself counts as there, BertNormalizer's option does not.
    if lowercases_first(folder) and "Lowercase" not in _normalizer_types(tokenizer):
        own = tokenizer.normalizer
        tokenizer.normalizer = Sequence([Lowercase()] if own is None else [Lowercase(), own])
    return tokenizer


def _normalizer_types(tokenizer: "Tokenizer") -> list[str]:
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    parts = normalizer.get("normalizers", [normalizer])
    return [part.get("type", "") for part in parts]


def differing_parts(ours: "Tokenizer", reference: "Tokenizer") -> list[str]:
    """The parts of two tokenizers that differ, each with the settings that change it."""
    one, other = (_canonical(tokenizer) for tokenizer in (ours, reference))
    return [f"{part} ({settings})" for part, settings in PARTS.items() if one[part] != other[part]]


def _canonical(tokenizer: "Tokenizer") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return {part: document.get(part) for part in PARTS}


def settle_tokenizer(folder: Path, where: str) -> list[str]:
    """Write into `folder`'s tokenizer.json what transformers reads from all of its tokenizer files; messages name the source, `where`.

    Tokens beyond the model's table are left out: no model could embed them. Where torch is not loaded yet, this takes a process of its own,
    in which transformers does not load it either: 2 CPU seconds for 9, and none of its memory.

    Returns:
        Warnings for the record.

    Raises:
        BaseModelError: tokenizer.json is broken, or transformers cannot load the tokenizer.
        MissingExtraError: transformers is not installed.
    """
    require_extra("build", "obtaining a base")
    if "torch" in sys.modules:
        return _settle(folder, where)
    with Worker(serve_settling, {"folder": str(folder), "where": where}) as worker:
        warnings: list[str] = worker.request({})
    return warnings


def serve_settling(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The process of `settle_tokenizer`."""
    for name in ("torch", "sklearn"):
        sys.modules[name] = None  # type: ignore[assignment]  # the import system takes None for "not installed"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it would say that only tokenizers are available
    yield
    yield _settle(Path(payload["folder"]), payload["where"])


def _settle(folder: Path, where: str) -> list[str]:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    reference = reference_tokenizer(folder)
    document = json.loads(reference.to_str())
    rows = read_body(folder).vocabulary
    beyond = [entry["content"] for entry in document["added_tokens"] if entry["id"] >= rows]
    document["added_tokens"] = [entry for entry in document["added_tokens"] if entry["id"] < rows]
    try:
        ours = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every broken file
        raise BaseModelError(f"{where}: tokenizer.json is not a tokenizer ({error}); download the model again") from error
    settled = Tokenizer.from_str(json.dumps(document))
    differing = differing_parts(ours, settled)
    if differing:
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    ours.no_truncation()
    ours.no_padding()
    texts = conformance_texts(settled, max_tokens=1)
    one, other = ([row.ids for row in each.encode_batch_fast(texts)] for each in (ours, settled))
    warnings = []
    if one != other:
        warnings.append(
            f"{where}: tokenizer.json differs from what transformers builds with {TOKENIZER_CONFIG} in {', '.join(differing)}; "
            "the artifact holds transformers' tokenizer"
        )
    if beyond:
        warnings.append(
            f"{where}: the model has no row for the special tokens {', '.join(beyond)}; the artifact's tokenizer leaves them out"
        )
    return warnings
