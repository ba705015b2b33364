"""Whether a base computes what its own libraries compute: the ids of transformers and the vectors of sentence-transformers.

optbench reads a checkpoint's files itself, because a service must not need torch. A setting that it missed would be wrong in every
artifact and in every accuracy figure alike, because they share the base. So a base is compared once with the libraries, from the folder
that it was made from, on texts that real users send and that tokenizers stumble over.
"""

import hashlib
import json
import os
import re
from collections.abc import Generator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact
from optbench.base.conformance_texts import conformance_texts
from optbench.base.entry import Base
from optbench.base.layout import WEIGHTS
from optbench.base.obtain import find_source
from optbench.base.tokenizer import differing_parts, reference_tokenizer
from optbench.encoder import Encoder
from optbench.engines.torch import Torch
from optbench.errors import BaseModelError, StepError
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.model.checkpoint import Description, describe, read_named_prompts
from optbench.model.safetensors import find_prefix, read_header
from optbench.model.settings import MODEL_SETTINGS, TOKENIZER_CONFIG, find_sentence_config
from optbench.model.tokenizer import load_tokenizer
from optbench.model.torch_model import build_module, quiet_transformers
from optbench.run.cache import Cache

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Conformance", "check_conformance", "check_exported_ids", "read_conformance", "serve_exported_ids"]

# Both compute in float32, and differ only in the order of sums.
COSINE_MIN = 0.99999
LENGTH_TOLERANCE = 1e-4
# Of a token's vector, whose components are of the order of 1: between libraries, and between two texts under causal attention.
TOKEN_TOLERANCE = 1e-3
CAUSAL_TOLERANCE = 1e-5
# Longer texts are compared by their ids alone: attention over 8,192 tokens takes gigabytes.
VECTOR_TOKENS_MAX = 512
TEXT_SHOWN = 60
REPORT = "optbench reads this folder otherwise than its libraries do: save the model again with sentence-transformers, or report the folder"

Vector = NDArray[np.float32]


class Conformance(Frozen):
    """What a base was compared with.

    Attributes:
        ids_of: the library whose ids the base has.
        vectors_of: the library whose vectors the base has; None where they could not be compared: `note` says why.
        cosine_min: to that library's vectors, of the worst text.
    """

    texts: int = 0
    ids_of: str = ""
    vectors_of: str | None = None
    cosine_min: float | None = None
    note: str = ""

    @property
    def summary(self) -> str:
        """One phrase for the terminal."""
        if not self.texts:
            return f"not compared with its libraries: {self.note}"
        if self.vectors_of is None:
            return f"{self.texts} texts: ids of {self.ids_of}; vectors not compared: {self.note}"
        return f"{self.texts} texts: ids and vectors of {self.vectors_of}, worst cosine {self.cosine_min:.6f}"


def read_conformance(
    artifact: Artifact, base: Base, cache: Cache, *, override: str | None = None, progress: Progress = silent
) -> Conformance | None:
    """How a base compares with its own libraries: from the cache, or compared now; None for random weights, which have no source.

    `override` is the source that replaced the recipe's.

    Raises:
        BaseModelError: an id or a vector differs; names the file and the key where they can be told.
    """
    if artifact.weights == "random":
        return None
    path = cache.conformance(_key(artifact))
    try:
        return Conformance.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        pass
    source = find_source(base, override=override)
    if source is None:
        return Conformance(note="its files have left the hub's cache; obtain the base with another --cache to compare it")
    found = check_conformance(artifact, source, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(found.model_dump_json(), encoding="utf-8")
    draft.replace(path)
    return found


def _key(artifact: Artifact) -> str:
    """A result holds for these bytes and these versions of the libraries."""
    versions = [_version(name) for name in ("transformers", "tokenizers", "sentence-transformers")]
    return hashlib.sha256(json.dumps([artifact.sha256, *versions]).encode()).hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def check_conformance(artifact: Artifact, source: Path, progress: Progress) -> Conformance:
    """Compare a base with the folder that it was made from, as transformers and sentence-transformers read it.

    What the recipe chose on purpose (a shorter input or vector, a prompt where the folder has none) is set in the library too.

    Raises:
        BaseModelError: an id or a vector differs; names the file and the key where they can be told.
    """
    description = describe(artifact.path)
    progress("comparing ids with transformers", None)
    texts = conformance_texts(load_tokenizer(artifact.path), description.max_tokens)
    ids_of = f"transformers {_version('transformers')}"
    reason, folder = _why_no_vectors(artifact, source, description)
    with Encoder(artifact, Torch()) as encoder:
        if folder is None:
            _compare_ids(encoder, _Transformers(source, encoder), texts, source)
            return Conformance(texts=len(texts), ids_of=ids_of, note=reason)
        try:
            reference = _SentenceTransformers(folder)
        except Exception as error:  # the library's own error on a stranger's files: it has no vectors to compare with
            _compare_ids(encoder, _Transformers(source, encoder), texts, source)
            return Conformance(texts=len(texts), ids_of=ids_of, note=f"sentence-transformers cannot load {folder.name}: {error!s:.200}")
        _compare_settings(reference, folder)
        _check_bidirectional(reference, folder)
        _check_weights_are_used(reference, folder)
        reference.choose(encoder, description)
        usable = _compare_ids(encoder, reference, texts, source)
        progress("comparing vectors with sentence-transformers", None)
        worst = _compare_vectors(encoder, reference, usable, source)
    return Conformance(
        texts=len(texts), ids_of=ids_of, vectors_of=f"sentence-transformers {_version('sentence-transformers')}", cosine_min=worst
    )


def check_exported_ids(folder: Path) -> str:
    """Compare the ids of an artifact with those that transformers, and so its other loaders, read from the artifact's own folder.

    Returns:
        One phrase for the terminal.

    Raises:
        StepError: an id differs; names the parts of the tokenizer.
    """
    description = describe(folder)
    ours, theirs = load_tokenizer(folder), reference_tokenizer(folder)
    theirs.enable_truncation(description.max_tokens)
    texts = conformance_texts(ours, description.max_tokens)
    for text in texts:
        one, other = ours.encode(text).ids, theirs.encode(text).ids
        if one != other and max(other, default=0) < description.body.vocabulary:
            raise StepError(
                f"its tokenizer gives {text[:TEXT_SHOWN]!r} {_shown(one)}, transformers gives {_shown(other)} in the same folder "
                f"({', '.join(differing_parts(ours, theirs)) or 'truncation'}); leave out trim_vocabulary, and report the tokenizer"
            )
    return f"{len(texts)} texts: ids of transformers {_version('transformers')}"


def serve_exported_ids(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """A process of its own for `check_exported_ids`: transformers stays out of the caller's memory."""
    yield
    yield check_exported_ids(Path(payload["folder"]))


def _why_no_vectors(artifact: Artifact, source: Path, description: Description) -> tuple[str, Path | None]:
    """The folder for sentence-transformers to load; or None, and why it has no vectors to compare with."""
    if find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed (pip install 'optbench[train]')", None
    if description.body.is_pruned:
        return "sentence-transformers cannot load a body whose layers differ in size", None
    prefix = (source / WEIGHTS).is_file() and find_prefix(read_header(source / WEIGHTS))
    # Without modules.json it would choose a pooling of its own; names with a foreign prefix it would replace by random weights.
    staged = not (source / "modules.json").is_file() or bool(prefix)
    return "", artifact.path if staged else source


class _Transformers:
    """The ids of transformers alone."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.tokenizer = reference_tokenizer(folder)
        self.tokenizer.enable_truncation(encoder.max_tokens)
        self._prompts, self._default = encoder.prompts, encoder.default_prompt or ""

    def ids(self, text: str, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(self._prompts.get(prompt or self._default, "") + text).ids
        return ids


class _SentenceTransformers:
    """A folder in sentence-transformers, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        with quiet_transformers():
            self.model = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, trust_remote_code=False, model_kwargs={"dtype": torch.float32}
            )
        self.tokenizer: Tokenizer = self.model.tokenizer.backend_tokenizer

    def settings(self) -> dict[str, object]:
        """What it read from the folder's files."""
        model = self.model
        width = model[0].get_embedding_dimension()
        return {
            "max_tokens": model.max_seq_length,
            "dimension": width if model.truncate_dim is None else min(width, model.truncate_dim),
            "similarity": model.similarity_fn_name,
            "default_prompt": model.default_prompt_name,
            "prompts": {name: text for name, text in model.prompts.items() if text},
        }

    def choose(self, encoder: Encoder, description: Description) -> None:
        """Set what the recipe chose."""
        self.model.max_seq_length = description.max_tokens
        self.model.truncate_dim = description.dimension
        self.model.prompts = dict(encoder.prompts)
        self.model.default_prompt_name = description.default_prompt

    def ids(self, text: str, prompt: str) -> list[int]:
        prefix = self.model.prompts[prompt or self.model.default_prompt_name] if prompt or self.model.default_prompt_name else None
        ids: list[int] = self.model.preprocess([text], prompt=prefix)["input_ids"][0].tolist()
        return ids

    def token_vectors(self, text: str) -> Vector:
        """(tokens, hidden)."""
        rows: Vector = self.model.encode(text, output_value="token_embeddings", show_progress_bar=False).numpy()
        return rows

    def embed(self, text: str) -> Vector:
        vector: Vector = self.model.encode(text, show_progress_bar=False)
        return vector


def _compare_settings(reference: _SentenceTransformers, folder: Path) -> None:
    """Compare what optbench reads from the folder with what sentence-transformers read."""
    theirs, ours = reference.settings(), describe(folder)
    sentence = find_sentence_config(folder)
    length_file = f"{sentence.name if sentence else TOKENIZER_CONFIG}: {'max_seq_length' if sentence else 'model_max_length'}"
    readings: tuple[tuple[str, object, object], ...] = (
        # A library that is told more tokens than the position table has rows fails on a long text.
        (length_file, ours.max_tokens, min(int(str(theirs["max_tokens"])), ours.body.position_limit)),
        (f"{MODEL_SETTINGS}: truncate_dim", ours.embedding_dimension, theirs["dimension"]),
        (f"{MODEL_SETTINGS}: similarity_fn_name", ours.similarity, theirs["similarity"]),
        (f"{MODEL_SETTINGS}: default_prompt_name", ours.default_prompt, theirs["default_prompt"]),
        (f"{MODEL_SETTINGS}: prompts", {name: text for name, text in read_named_prompts(folder).items() if text}, theirs["prompts"]),
    )
    for key, mine, other in readings:
        if mine != other:
            raise BaseModelError(f"{folder}: {key}: sentence-transformers reads {other}, optbench {mine}; {REPORT}")


def _check_bidirectional(reference: _SentenceTransformers, folder: Path) -> None:
    """Refuse causal attention, which exports as bidirectional: the first token of a text must depend on the last."""
    one, other = (reference.token_vectors(text)[0] for text in ("a b", "a b c d"))
    if np.allclose(one, other, atol=CAUSAL_TOLERANCE):
        raise BaseModelError(
            f"{folder}: config.json: is_decoder (or is_causal): a token does not depend on those after it, but optbench exports "
            "bidirectional attention; give another model"
        )


def _check_weights_are_used(reference: _SentenceTransformers, folder: Path) -> None:
    """Refuse weights of the transformer that transformers leaves out without a word, as those of relative positions."""
    model = reference.model.transformers_model
    known = set(model.state_dict())
    layers = model.config.num_hidden_layers
    for name in read_header(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else ():
        layer = re.match(r"encoder\.layer\.(\d+)\.", name)
        inside = int(layer[1]) < layers if layer else name.startswith(("encoder.", "embeddings."))
        # Older versions stored these two counts as tensors.
        if inside and name not in known and not name.endswith((".position_ids", ".token_type_ids")):
            raise BaseModelError(
                f"{folder}: {WEIGHTS} holds {name}, which transformers {_version('transformers')} does not use: config.json asks for "
                "another architecture (position_embedding_type?); give another model"
            )


def _compare_ids(encoder: Encoder, reference: _Transformers | _SentenceTransformers, texts: Sequence[str], source: Path) -> list[str]:
    """Compare each text without a prompt and with each; returns the texts that the library can embed."""
    rows = describe(encoder.artifact.path).body.vocabulary
    usable = []
    for prompt in ("", *(name for name, text in encoder.prompts.items() if text)):
        for text in texts:
            theirs = reference.ids(text, prompt)
            if max(theirs, default=0) >= rows:
                continue  # a token that the model has no row for: the library itself fails on this text
            ids, mask = encoder.tokenize([text], prompt or None)
            ours = ids[0][mask[0] == 1].tolist()
            if ours != theirs:
                where = f" with the prompt {prompt!r}" if prompt else ""
                raise BaseModelError(
                    f"{source}: {_ids_cause(encoder, reference, ours, theirs)}: the token ids of {text[:TEXT_SHOWN]!r}{where} are "
                    f"{_shown(ours)}, transformers gives {_shown(theirs)}; {REPORT}"
                )
            if not prompt and 0 < len(ours) <= VECTOR_TOKENS_MAX:
                usable.append(text)
    return usable


def _ids_cause(encoder: Encoder, reference: _Transformers | _SentenceTransformers, ours: Sequence[int], theirs: Sequence[int]) -> str:
    parts = differing_parts(load_tokenizer(encoder.artifact.path), reference.tokenizer)
    if parts:
        return f"{TOKENIZER_CONFIG} and tokenizer.json differ in {', '.join(parts)}"
    if len(ours) != len(theirs) and max(len(ours), len(theirs)) >= encoder.max_tokens:
        return f"{TOKENIZER_CONFIG}: model_max_length"
    return f"{MODEL_SETTINGS}: prompts or default_prompt_name"


def _shown(ids: Sequence[int]) -> str:
    return f"{len(ids)} ids {list(ids[:8])}"


def _compare_vectors(encoder: Encoder, reference: _SentenceTransformers, texts: Sequence[str], source: Path) -> float:
    """The worst cosine to the library's vectors, each text alone."""
    worst = 1.0
    for text in texts:
        ours, theirs = encoder.encode(text).astype(np.float64), reference.embed(text).astype(np.float64)
        cosine = _similarity(ours, theirs)
        if cosine < COSINE_MIN:
            raise BaseModelError(
                f"{source}: {_vector_cause(encoder, reference, text)}: the vector of {text[:TEXT_SHOWN]!r} has {len(ours)} components, "
                f"length {np.linalg.norm(ours):.5f} and cosine {cosine:.5f} to sentence-transformers' with {len(theirs)} components and "
                f"length {np.linalg.norm(theirs):.5f}; {REPORT}"
            )
        worst = min(worst, cosine)
    return worst


def _similarity(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Cosine, or 0 where the vectors differ in size or length."""
    one, other = np.linalg.norm(ours), np.linalg.norm(theirs)
    if ours.shape != theirs.shape or not np.isclose(one, other, rtol=LENGTH_TOLERANCE):
        return 0.0
    return float(ours @ theirs / (one * other))


def _vector_cause(encoder: Encoder, reference: _SentenceTransformers, text: str) -> str:
    """The file that the difference comes from: the transformer's, if its token vectors differ, else that of what follows it."""
    import torch

    ids, mask = encoder.tokenize([text])
    with torch.inference_mode():
        ours = build_module(encoder.artifact.path)(torch.tensor(ids), torch.tensor(mask))[0][0].numpy()
    theirs = reference.token_vectors(text)
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=TOKEN_TOLERANCE):
        return "config.json or model.safetensors (the transformer's own output differs)"
    return f"modules.json, 1_Pooling/config.json or {MODEL_SETTINGS} truncate_dim (the transformer's output is equal, what follows differs)"
