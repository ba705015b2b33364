"""A tokenizer.json with fewer pieces: which must be kept whatever a corpus uses, and every place where an id is written.

Why texts whose pieces are all kept are tokenized as before:
    WordPiece takes the longest piece at each position; that piece is still there, and there is no new, longer one.
    Unigram takes the path with the best sum of scores; that path is still there, and there is no new, better one. An unknown
    character costs the lowest score less ten, so a piece with the lowest score is kept too.

Source: Kudo 2018, arXiv:1804.10959 (Unigram); Wu et al. 2016, arXiv:1609.08144 (WordPiece).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.errors import StepError
from optbench.model.checkpoint import read_body, read_json

__all__ = ["Pieces", "read_pieces", "renumber_companions", "renumber_tokenizer"]

TRIMMED = ("WordPiece", "Unigram")


@dataclass(frozen=True)
class Pieces:
    """The pieces of a tokenizer.

    Attributes:
        document: tokenizer.json.
        names: id to piece, in the order of the ids.
        scores: id to log-probability; empty for WordPiece, which has none.
        added: ids of special and added tokens.
        prefix: what a piece inside a word begins with: `##`, or nothing.
    """

    document: dict[str, Any]
    names: Mapping[int, str]
    scores: Mapping[int, float]
    added: frozenset[int]
    unknown: int | None
    prefix: str

    def required(self, pad_id: int, *, keep_up_to_pad: bool) -> dict[str, set[int]]:
        """Ids to keep whatever the corpus uses, by reason: with them every text can still be tokenized.

        RoBERTa-like models count positions from the pad id, so no id before it may be removed: `keep_up_to_pad`.
        """
        special = {*self.added, pad_id, *(range(pad_id) if keep_up_to_pad else ())}
        if self.unknown is not None:
            special.add(self.unknown)
        starts = {name for name in self.names.values() if len(name) == 1}
        inside = {name[len(self.prefix) :] for name in self.names.values() if self._inside(name) and len(name) == len(self.prefix) + 1}
        inside = inside if self.prefix else starts
        characters, alone = set(), set()
        for index, name in self.names.items():
            plain = name[len(self.prefix) :] if self._inside(name) else name
            if len(plain) == 1 or self._is_byte(name):
                characters.add(index)
            elif any(character not in (inside if place or self._inside(name) else starts) for place, character in enumerate(plain)):
                # Some character has no piece of its own: only this piece contains it.
                alone.add(index)
        lowest = {min(self.scores, key=lambda index: self.scores[index])} if self.scores else set()
        return {"special": special, "characters": characters - special, "only_piece_of_a_character": alone - special | lowest}

    def _inside(self, name: str) -> bool:
        return bool(self.prefix) and name.startswith(self.prefix) and len(name) > len(self.prefix)

    def _is_byte(self, name: str) -> bool:
        return bool(self.document["model"].get("byte_fallback")) and len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def read_pieces(folder: Path) -> Pieces:
    """The pieces of an artifact's tokenizer.json, which the tokenizers library has accepted.

    Raises:
        StepError: a kind of tokenizer whose pieces cannot be removed one by one.
    """
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    model = document["model"]
    kind = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "WordPiece" if "unk_token" in model else "BPE")
    if kind not in TRIMMED:
        raise StepError(
            f"{path}: a {kind} tokenizer; trim_vocabulary takes {' and '.join(TRIMMED)} (a BPE's pieces are built from one another): "
            "remove the step, and use compress_tables for a smaller table"
        )
    added = {int(entry["id"]): str(entry["content"]) for entry in document.get("added_tokens") or ()}
    if kind == "Unigram":
        pieces = {index: str(name) for index, (name, _) in enumerate(model["vocab"])}
        scores = {index: float(score) for index, (_, score) in enumerate(model["vocab"])}
        unknown, prefix = model.get("unk_id"), ""
    else:
        pieces = {int(index): str(name) for name, index in model["vocab"].items()}
        scores, unknown, prefix = {}, model["vocab"].get(model["unk_token"]), str(model["continuing_subword_prefix"])
    names = dict(sorted({**pieces, **added}.items()))
    return Pieces(document, names, scores, frozenset(added), unknown, prefix)


def renumber_tokenizer(pieces: Pieces, new_ids: Mapping[int, int], where: Path) -> dict[str, Any]:
    """The tokenizer.json with only the pieces of `new_ids`, under their new ids; refuses a post-processor that may hold other ids."""
    model = dict(pieces.document["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in new_ids]
        model["unk_id"] = None if pieces.unknown is None else new_ids[pieces.unknown]
    else:
        kept = sorted((index, name) for name, index in model["vocab"].items() if index in new_ids)
        model["vocab"] = {name: new_ids[index] for index, name in kept}
    document = {**pieces.document, "model": model}
    document["added_tokens"] = [{**entry, "id": new_ids[entry["id"]]} for entry in document.get("added_tokens") or ()]
    if document.get("padding"):
        document["padding"] = {**document["padding"], "pad_id": new_ids[document["padding"]["pad_id"]]}
    document["post_processor"] = _renumber_processor(document.get("post_processor"), new_ids, where)
    return document


def _renumber_processor(processor: dict[str, Any] | None, new_ids: Mapping[int, int], where: Path) -> dict[str, Any] | None:
    if processor is None:
        return None
    match processor["type"]:
        case "TemplateProcessing":
            tokens = processor["special_tokens"]
            return {
                **processor,
                "special_tokens": {name: {**token, "ids": [new_ids[index] for index in token["ids"]]} for name, token in tokens.items()},
            }
        case "BertProcessing" | "RobertaProcessing":
            return {**processor, **{side: [processor[side][0], new_ids[processor[side][1]]] for side in ("sep", "cls")}}
        case "Sequence":
            return {**processor, "processors": [_renumber_processor(each, new_ids, where) for each in processor["processors"]]}
        case "ByteLevel":
            return processor
        case kind:
            raise StepError(f"{where}: post-processor {kind} is not supported by trim_vocabulary, because it may hold ids; remove the step")


def renumber_companions(source: Path, out: Path, pieces: Pieces, new_ids: Mapping[int, int]) -> None:
    """Write the other files with ids to `out`: config.json, tokenizer_config.json, added_tokens.json, vocab.txt.

    `new_ids` is from the old ids to keep, ascending, to the new ones.
    """
    config = read_json(source / "config.json")
    ids = {
        key: new_ids[value] for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int) and value in new_ids
    }
    ids["pad_token_id"] = new_ids[read_body(source).pad_id]
    _write(out / "config.json", {**config, **ids, "vocab_size": len(new_ids)})
    path = source / "tokenizer_config.json"
    if path.is_file():
        document = read_json(path)
        if isinstance(document.get("added_tokens_decoder"), dict):
            entries = {new_ids.get(int(index)): entry for index, entry in document["added_tokens_decoder"].items()}
            document["added_tokens_decoder"] = {str(index): entry for index, entry in entries.items() if index is not None}
        _write(out / path.name, document)
    path = source / "added_tokens.json"
    if path.is_file():
        _write(out / path.name, {name: new_ids[index] for name, index in read_json(path).items() if index in new_ids})
    if (source / "vocab.txt").is_file():
        lines = [pieces.names.get(index, f"[unused{index}]") for index in new_ids]
        (out / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
