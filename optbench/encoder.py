"""What a service imports: text in, embeddings out. Needs numpy, tokenizers and one engine, nothing heavier.

with optbench.load("exported/minilm-l6") as encoder:
    queries = encoder.encode(["waterproof running shoes"], prompt="query")
    documents = encoder.encode(texts, prompt="document")
    scores = queries @ documents.T
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from optbench.artifact.folder import Artifact, open_artifact
from optbench.engines import ENGINES, Engine, default_engine
from optbench.errors import ArtifactError, BaseModelError, EngineError
from optbench.model.checkpoint import describe, read_json, read_named_prompts
from optbench.model.padding import pad_batch
from optbench.model.tokenizer import encode_batch, load_tokenizer

__all__ = ["ENGINE_FILE", "Encoder", "choose_engine", "load"]

ENGINE_FILE = "engine.json"
"""The file beside the weights with the engine options that the artifact was measured with: an `Engine` as JSON."""
# Texts per call of the tokenizer: enough to keep its threads busy, few enough to bound its memory.
TOKENIZE_CHUNK = 2048

_ENGINE: TypeAdapter[Engine] = TypeAdapter(Engine)


def load(
    path: str | Path, engine: Engine | str | None = None, *, dimension: int | None = None, verify: bool = False, **options: Any
) -> "Encoder":
    """Open an artifact for encoding.

    Args:
        path: the artifact's folder.
        engine: an engine, or its name. Default: what the folder's engine.json says, else the native engine of its kind.
        dimension: keep this many leading components, for models trained for it (Matryoshka); the result is normalized again if
            the model normalizes.
        verify: hash every file and compare with the manifest. Without it only names and sizes are checked, which takes no time.
        options: override options of the engine: `threads=2`.

    Raises:
        ArtifactError: the folder is not a complete artifact, or its embedding is shorter than `dimension`.
        EngineError: no such engine or option, or the engine refuses the artifact.
    """
    artifact = open_artifact(Path(path), verify=verify)
    return Encoder(artifact, choose_engine(artifact, engine, options), dimension=dimension)


def choose_engine(artifact: Artifact, engine: Engine | str | None, options: Mapping[str, Any]) -> Engine:
    """The engine with which `load` opens an artifact; same arguments and errors."""
    where = f"engine {engine}" if isinstance(engine, str) else "engine options"
    document: Any
    if isinstance(engine, str):
        document = {"engine": engine}
    elif engine is not None:
        document = engine.model_dump()
    elif (artifact.path / ENGINE_FILE).is_file():
        where = str(artifact.path / ENGINE_FILE)
        try:
            document = read_json(artifact.path / ENGINE_FILE)
        except BaseModelError as error:
            raise ArtifactError(str(error)) from error
    else:
        document = default_engine(artifact.kind).model_dump()
    if isinstance(document, dict):
        document = {**document, **options}
    try:
        return _ENGINE.validate_python(document)
    except ValidationError as error:
        raise EngineError(f"{where}: {_describe(error, document)}") from error


def _describe(error: ValidationError, document: Any) -> str:
    """The first of pydantic's errors; for an unknown option, the options that the engine has."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    selected = ENGINES.selected(document)
    if selected is None:
        return str(first["msg"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(name for name in selected.model_fields if name != "engine")
        return f"{document['engine']} has no option {place[-1]}; it has {known}"
    return f"{document['engine']} {' '.join(place)}: {first['msg']}"


class Encoder:
    """An artifact, its tokenizer and an engine's session. Thread-safe: calls from several threads run one after another.

    Attributes:
        dimension: components of an embedding.
        max_tokens: the longest input; a longer one is truncated at the end.
        prompts: texts to prepend, by the name that `encode` takes: always `query` and `document`, and those of the model.
    """

    def __init__(self, artifact: Artifact, engine: Engine, *, dimension: int | None = None) -> None:
        """Read the small files, load the tokenizer and open the engine; same errors as `load`."""
        self.artifact, self.engine = artifact, engine
        try:
            description = describe(artifact.path)
            named = read_named_prompts(artifact.path)
        except BaseModelError as error:
            raise ArtifactError(str(error)) from error
        if dimension is not None and not 1 <= dimension <= description.body.hidden:
            raise ArtifactError(
                f"{artifact.path}: its embeddings have {description.body.hidden} components, not {dimension}; choose a smaller dimension"
            )
        self.prompts: Mapping[str, str] = MappingProxyType({**description.prompts.model_dump(), **named})
        self.dimension: int = dimension or description.body.hidden
        self.max_tokens: int = description.max_tokens
        self._cut = self.dimension < description.body.hidden
        self._normalize = description.normalize
        self._pad_id = description.body.pad_id
        self._tokenizer = load_tokenizer(artifact.path)
        self._lock = threading.Lock()
        self._session = engine.open(artifact)

    def encode(self, texts: str | Sequence[str], prompt: str | None = None, *, batch_size: int = 32) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: one, or several.
            prompt: the name of the prompt to prepend, such as `query` or `document`; None for no prompt.
            batch_size: texts per run; a batch holds texts of similar length, so that little of it is padding.

        Returns:
            (dimension,) for one text; (len(texts), dimension) for several, in their order.

        Raises:
            ArtifactError: the model has no prompt of that name; lists those it has.
            TypeError: a text that is not a `str`.
        """
        if isinstance(texts, str):
            row: NDArray[np.float32] = self.embed(*self.tokenize((texts,), prompt))[0]
            return row
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        if not texts:
            self._with_prompt((), prompt)
            return np.empty((0, self.dimension), dtype=np.float32)
        if len(texts) == 1:
            return self.embed(*self.tokenize(texts, prompt))
        rows = self._tokenize_ragged(self._with_prompt(texts, prompt))
        out = np.empty((len(rows), self.dimension), dtype=np.float32)
        # Longest first: the first run takes the most memory, so a lack of it shows at once.
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            out[batch] = self.embed(*pad_batch([rows[index] for index in batch], self._pad_id))
        return out

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prepend the prompt to at least one text, and tokenize without embedding.

        Returns:
            input_ids and attention_mask, each (len(texts), tokens of the longest) int64.
        """
        return encode_batch(self._tokenizer, self._with_prompt(texts, prompt))

    def embed(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids, (batch, tokens) with a mask of 1 for a token and 0 for padding, as (batch, dimension)."""
        with self._lock:
            rows = self._session.embed(input_ids, attention_mask)
        if self._cut:
            rows = rows[:, : self.dimension]
            if self._normalize:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return rows

    def close(self) -> None:
        """Free the model's memory. May be called more than once."""
        with self._lock:
            self._session.close()

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with_prompt(self, texts: Sequence[str], name: str | None) -> Sequence[str]:
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}]: expected str, found {type(text).__name__}")
        if name is None:
            return texts
        prefix = self.prompts.get(name)
        if prefix is None:
            raise ArtifactError(f"{self.artifact.path}: has no prompt {name!r}; it has {', '.join(self.prompts)}")
        return [prefix + text for text in texts] if prefix else texts

    def _tokenize_ragged(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The ids of each text, without padding."""
        rows: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(texts)
        # By length in characters: the tokenizer pads a chunk to its longest row.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), TOKENIZE_CHUNK):
            chunk = order[start : start + TOKENIZE_CHUNK]
            ids, mask = encode_batch(self._tokenizer, [texts[index] for index in chunk])
            for index, row, length in zip(chunk, ids, mask.sum(axis=1), strict=True):
                rows[index] = row[:length].copy()
        return rows
