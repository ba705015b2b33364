"""What a service imports: text in, embeddings out. Needs numpy, tokenizers and one engine, nothing heavier.

with optbench.load("exported/minilm-l6") as encoder:
    queries = encoder.encode_query(["waterproof running shoes"])
    documents = encoder.encode_document(texts)
    scores = encoder.similarity(queries, documents)
"""

import asyncio
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, open_artifact
from optbench.engines import Engine, Streams
from optbench.engines.batching import BATCH_MAX, TOKENS_MAX, Batcher, plan_batches
from optbench.engines.choice import choose_engine
from optbench.errors import ArtifactError, BaseModelError
from optbench.machine.progress import Progress, bar, silent
from optbench.model.checkpoint import describe, read_named_prompts
from optbench.model.padding import pad_batch
from optbench.model.settings import Similarity
from optbench.model.similarity import similarity
from optbench.model.texts import as_texts, check_text
from optbench.model.tokenizer import encode_batch, load_tokenizer

__all__ = ["AsyncEncoder", "Encoder", "load"]

# Texts per call of the tokenizer: enough to keep its threads busy, few enough to bound its memory.
TOKENIZE_CHUNK = 2048
# Texts in calls of several batches before the streams are opened: opening takes about as long as they save on that many.
STREAMS_AFTER = 1024
# Runs of each length in a warm-up: the first plans the kernels, the second grows the memory.
WARM_RUNS = 2
WARM_LENGTHS = (8, 16, 32, 64)
# An address, after Path has made one slash of two.
ADDRESS = re.compile(r"[a-z0-9]{2,}:/")


def load(
    path: str | Path,
    engine: Engine | str | None = None,
    *,
    dimension: int | None = None,
    verify: bool = False,
    streams: bool = True,
    **options: Any,
) -> "Encoder":
    """Open an artifact for encoding.

    Args:
        path: the artifact's folder.
        engine: an engine, or its name. Default: what the folder's engine.json says, else the native engine of its kind.
        dimension: keep this many leading components, for models trained for it (Matryoshka); the result is normalized again if
            the model normalizes.
        verify: hash every file and compare with the manifest. Without it only names and sizes are checked, which takes no time.
        streams: once many texts have been encoded, open a second copy of the model, which runs a batch on each core: more texts per
            second, for the copy's memory.
        options: override options of the engine: `threads=2`.

    Raises:
        ArtifactError: the folder is not a complete artifact, or its embedding is shorter than `dimension`.
        EngineError: no such engine or option, or the engine refuses the artifact.
    """
    if ADDRESS.match(str(path)):
        raise ArtifactError(f"{path}: load opens a folder; run `optbench pull {path} FOLDER` first, and load that folder")
    artifact = open_artifact(Path(path), verify=verify)
    return Encoder(artifact, choose_engine(artifact, engine, options), dimension=dimension, streams=streams)


class Encoder:
    """An artifact, its tokenizer and an engine's session.

    Thread-safe: single texts of several threads run one after another. An encoder can be pickled: the copy opens the same folder.
    Open one in each process instead of forking an open one.

    Attributes:
        dimension: components of an embedding.
        max_tokens: the longest input; a longer one is truncated at the end.
        prompts: texts to prepend, by the name that `encode` takes: always `query` and `document`, and those of the model.
        default_prompt: the name of the prompt that is prepended where `encode` is given none; None for no prompt.
        similarity_fn_name: how embeddings of this model are compared: `cosine`, `dot`, `euclidean` or `manhattan`.
    """

    def __init__(self, artifact: Artifact, engine: Engine, *, dimension: int | None = None, streams: bool = True) -> None:
        """Read the small files, load the tokenizer and open the engine; same arguments and errors as `load`."""
        self.artifact, self.engine = artifact, engine
        try:
            description = describe(artifact.path)
            named = read_named_prompts(artifact.path)
        except BaseModelError as error:
            raise ArtifactError(str(error)) from error
        whole = description.embedding_dimension
        if dimension is not None and not 1 <= dimension <= whole:
            raise ArtifactError(f"{artifact.path}: its embeddings have {whole} components, not {dimension}; choose a smaller dimension")
        self.prompts: Mapping[str, str] = MappingProxyType({**description.prompts.model_dump(), **named})
        self.default_prompt: str | None = description.default_prompt
        # sentence-transformers' encode_document does not look for `passage`, which `prompts` gives as `document` too.
        self._document_prompt = "document" if "document" in named else ""
        self.dimension: int = dimension or whole
        self.max_tokens: int = description.max_tokens
        self.similarity_fn_name: Similarity = description.similarity
        self._reopening = (artifact.path.absolute(), artifact.sha256, engine, dimension, streams)
        self._cut = self.dimension < whole
        self._normalize = description.normalize
        self._pad_id = description.body.pad_id
        self._tokenizer = load_tokenizer(artifact.path)
        self._lock = threading.Lock()
        self._session = engine.open(artifact)
        self._streams_lock = threading.Lock()
        self._streams: Streams | None = None
        # Texts still to come before the streams are opened; infinity for never.
        self._until_streams = STREAMS_AFTER if streams else float("inf")

    def encode(
        self, texts: str | Iterable[str], prompt: str | None = None, *, batch_size: int = 64, progress: bool | Progress = False
    ) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: one, or any iterable of them: list, tuple, generator, numpy array, pandas Series.
            prompt: the name of the prompt to prepend, such as `query` or `document`. Default: the model's default prompt, which
                few models have, else none. An empty name is none.
            batch_size: the most texts per run. A run also has at most 512 tokens, of texts of similar length. With 1, each text is
                embedded as if it came alone.
            progress: show a progress bar on stderr; or a function, which is called with a message and the share done.

        Returns:
            (dimension,) for one text; (texts, dimension) for several, in their order.

        Raises:
            ArtifactError: the model has no prompt of that name; lists those it has.
            TypeError: not a str or an iterable of str; names the type, or the index of the item.
            ValueError: a text with a lone surrogate, which is not Unicode; names its index and shows it.
        """
        prefix = self._prefix(prompt)
        if isinstance(texts, str):
            check_text(texts, "text")
            row: NDArray[np.float32] = self.embed(*encode_batch(self._tokenizer, [prefix + texts]))[0]
            return row
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1")
        rows = self._tokenize_ragged(_prepend(prefix, as_texts(texts)))
        batches = plan_batches(list(map(len, rows)), batch_size)
        streams = self._open_streams(len(rows)) if len(batches) > 1 and batch_size > 1 else None
        if progress is True:
            with bar("encoding", len(rows)) as report:
                return self._embed_rows(rows, batches, streams, report)
        return self._embed_rows(rows, batches, streams, progress or silent)

    def encode_query(self, texts: str | Iterable[str], *, batch_size: int = 64, progress: bool | Progress = False) -> NDArray[np.float32]:
        """Embed queries: `encode` with the model's prompt `query`, if it has one, and else with none."""
        return self.encode(texts, "query", batch_size=batch_size, progress=progress)

    def encode_document(
        self, texts: str | Iterable[str], *, batch_size: int = 64, progress: bool | Progress = False
    ) -> NDArray[np.float32]:
        """Embed documents: `encode` with the model's prompt of the name `document`, if it has one, and else with none.

        So does sentence-transformers. A model that names it `passage` needs `encode(texts, "passage")`.
        """
        return self.encode(texts, self._document_prompt, batch_size=batch_size, progress=progress)

    def similarity(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compare embeddings by the model's own function, `similarity_fn_name`; a larger value is more similar.

        Args:
            first: (n, dimension), or (dimension,) for one.
            second: (m, dimension) or (dimension,).

        Returns:
            (n, m).

        Raises:
            ValueError: other shapes.
        """
        return similarity(self.similarity_fn_name, first, second)

    def warm_up(self, lengths: Iterable[int] = WARM_LENGTHS, *, streams: bool = False) -> None:
        """Do now what would delay the first calls: plan the kernels for texts of these lengths, and compile static lengths.

        Args:
            lengths: in tokens; one beyond `max_tokens` counts as `max_tokens`.
            streams: also open what calls of many texts use.
        """
        if streams:
            self._until_streams = min(self._until_streams, 0)
        opened = self._open_streams(0)
        for length in sorted({min(each, self.max_tokens) for each in lengths}):
            ids = np.full((1, length), self._pad_id, dtype=np.int64)
            for _ in range(WARM_RUNS):
                self.embed(ids, np.ones_like(ids))
            if opened is not None:
                many = np.repeat(ids, max(1, TOKENS_MAX // length), axis=0)
                for _ in opened.embed_batches([(many, np.ones_like(many))] * WARM_RUNS):
                    pass

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prepend the prompt to at least one text, and tokenize without embedding.

        Returns:
            input_ids and attention_mask, each (len(texts), tokens of the longest) int64.
        """
        return encode_batch(self._tokenizer, _prepend(self._prefix(prompt), as_texts(texts)))

    def embed(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed token ids, (batch, tokens) with a mask of 1 for a token and 0 for padding, as (batch, dimension).

        A row without a token gives a zero vector, as in sentence-transformers.
        """
        some = attention_mask.any(axis=1)
        if not some.all():  # only a tokenizer without special tokens has nothing to say of an empty text
            out = np.zeros((len(input_ids), self.dimension), dtype=np.float32)
            if some.any():
                out[some] = self.embed(input_ids[some], attention_mask[some])
            return out
        with self._lock:
            rows = self._session.embed(input_ids, attention_mask)
        return self._shorten(rows)

    def close(self) -> None:
        """Free the model's memory. May be called more than once."""
        with self._lock:
            self._session.close()
        with self._streams_lock:
            self._until_streams = float("inf")
            if self._streams is not None:
                self._streams.close()
                self._streams = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder's path and the options, no weights."""
        return _reopen, self._reopening

    def _prefix(self, name: str | None) -> str:
        name = self.default_prompt if name is None else name
        if not name:
            return ""
        if name not in self.prompts:
            raise ArtifactError(f"{self.artifact.path}: has no prompt {name!r}; it has {', '.join(self.prompts)}")
        return self.prompts[name]

    def _shorten(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if rows.shape[1] != self.dimension:
            rows = rows[:, : self.dimension]
            if self._cut and self._normalize:
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return rows

    def _embed_rows(
        self, rows: Sequence[NDArray[np.int64]], batches: Sequence[list[int]], streams: Streams | None, report: Progress = silent
    ) -> NDArray[np.float32]:
        """Embed the (tokens,) ids of texts in the planned batches: (len(rows), dimension), zero for a text without a token."""
        out = np.zeros((len(rows), self.dimension), dtype=np.float32)
        padded = (pad_batch([rows[index] for index in batch], self._pad_id) for batch in batches)
        embedded = (self.embed(*each) for each in padded) if streams is None else map(self._shorten, streams.embed_batches(padded))
        tokens, done = sum(map(len, rows)), 0
        for batch, vectors in zip(batches, embedded, strict=True):
            out[batch] = vectors
            done += sum(len(rows[index]) for index in batch)
            report("encoding", done / tokens)
        return out

    def _embed_together(self, texts: list[str]) -> list[NDArray[np.float32]]:
        """Embed texts of concurrent callers, prompts included. In the session: nobody waits until streams are open."""
        rows = self._tokenize_ragged(texts)
        return list(self._embed_rows(rows, plan_batches(list(map(len, rows)), len(rows)), None))

    def _open_streams(self, texts: int) -> Streams | None:
        """The streams for a call of so many texts; None for a session, before enough have come."""
        with self._streams_lock:
            self._until_streams -= texts
            if self._until_streams <= 0 and self._streams is None:
                self._streams = self.engine.open_streams(self.artifact)
                if self._streams is None:
                    self._until_streams = float("inf")
            return self._streams

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


def _prepend(prefix: str, texts: list[str]) -> list[str]:
    return [prefix + text for text in texts] if prefix else texts


def _reopen(path: Path, sha256: str, engine: Engine, dimension: int | None, streams: bool) -> Encoder:
    artifact = open_artifact(path, verify=False)
    if artifact.sha256 != sha256:
        raise ArtifactError(f"{path}: is another artifact than when this encoder was pickled; load it again")
    return Encoder(artifact, engine, dimension=dimension, streams=streams)


class AsyncEncoder:
    """Embeds the texts of concurrent callers of an asyncio service in common batches.

    A batch begins when the previous one is done and either `max_batch` texts wait or the oldest has waited for `max_delay_ms`. The
    event loop is never blocked. `optbench scenarios --batch-delay-ms` measures what a delay costs and gains.

        async with AsyncEncoder(optbench.load("exported/minilm-l6"), max_delay_ms=2) as encoder:
            vector = await encoder.encode_query("running shoes")
    """

    def __init__(self, encoder: Encoder, *, max_delay_ms: float = 0.0, max_batch: int = BATCH_MAX) -> None:
        """Start the thread that embeds.

        Args:
            encoder: runs the batches; `aclose` does not close it.
            max_delay_ms: how long a text waits for company while nothing runs. With 0 it waits only for the running batch.
            max_batch: the most texts in a batch.
        """
        if max_delay_ms < 0 or max_batch < 1:
            raise ValueError(f"max_delay_ms {max_delay_ms}, max_batch {max_batch}: expected at least 0 and 1")
        self.encoder, self._max_batch = encoder, max_batch
        self._batcher: Batcher[str, NDArray[np.float32]] = Batcher(encoder._embed_together, delay_s=max_delay_ms / 1e3, size_max=max_batch)

    async def encode(self, texts: str | Iterable[str], prompt: str | None = None) -> NDArray[np.float32]:
        """Embed texts; same arguments, result and errors as `Encoder.encode`. What is cancelled before its batch begins is not run."""
        prefix = self.encoder._prefix(prompt)
        if isinstance(texts, str):
            check_text(texts, "text")
            return await asyncio.wrap_future(self._batcher.submit(prefix + texts))
        prompted = _prepend(prefix, as_texts(texts))
        out = np.empty((len(prompted), self.encoder.dimension), dtype=np.float32)
        # A batch at a time, so that a caller of many texts leaves room for the others; similar lengths, so that little is padding.
        order = sorted(range(len(prompted)), key=lambda index: -len(prompted[index]))
        for start in range(0, len(order), self._max_batch):
            part = order[start : start + self._max_batch]
            out[part] = await asyncio.gather(*(asyncio.wrap_future(self._batcher.submit(prompted[index])) for index in part))
        return out

    async def encode_query(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """As `Encoder.encode_query`."""
        return await self.encode(texts, "query")

    async def encode_document(self, texts: str | Iterable[str]) -> NDArray[np.float32]:
        """As `Encoder.encode_document`."""
        return await self.encode(texts, self.encoder._document_prompt)

    async def aclose(self) -> None:
        """Embed what waits, and end the thread. May be called more than once."""
        await asyncio.to_thread(self._batcher.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
