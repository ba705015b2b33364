"""Embeddings of many texts by one artifact, made in a process of its own and kept by content."""

import hashlib
import json
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from optbench.artifact.folder import Artifact
from optbench.engines import Engine
from optbench.machine.cpu import Isa
from optbench.machine.disk import full_disk_errors
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker

__all__ = ["BATCH_SIZE", "TextEncoder"]

Role = Literal["query", "document"]
# A query comes alone, as a service sends it: some int8 forms give other numbers in a batch. Documents are indexed in batches.
BATCH_SIZE: dict[Role, int] = {"query": 1, "document": 32}
# Texts between two words of progress.
CHUNK = 256


def serve_texts(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The child's side: open once, then embed lists of texts into .npy files."""
    from optbench.encoder import load

    engine: Engine = TypeAdapter(Engine).validate_python(payload["engine"])
    encoder = load(Path(payload["path"]), engine=engine)
    while True:
        request: dict[str, Any] = yield
        texts = request["texts"]
        # Sorted once over the whole list, so that chunks do not undo the sorting inside the encoder.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = np.empty((len(texts), encoder.dimension), dtype=np.float32)
        for start in range(0, len(order), CHUNK):
            progress("encoding", start / len(order))
            part = order[start : start + CHUNK]
            rows[part] = encoder.encode([texts[index] for index in part], prompt=request["prompt"], batch_size=request["batch_size"])
        out = Path(request["out"])
        with full_disk_errors(out.parent):
            np.save(out, rows)


class TextEncoder:
    """An artifact in an engine, as a function from texts to vectors; what it has embedded is found again in the cache."""

    serve = staticmethod(serve_texts)

    def __init__(
        self,
        artifact: Artifact,
        engine: Engine,
        cache: Path,
        *,
        isa: Isa | None = None,
        progress: Progress = silent,
    ) -> None:
        """Nothing is opened until something must be embedded.

        Args:
            artifact: what embeds.
            engine: what runs it.
            cache: a folder for the vectors.
            isa: run as a CPU with this instruction set would.
            progress: called with a phrase and the share done.
        """
        self._artifact, self._engine, self._cache, self._isa, self._progress = artifact, engine, cache, isa, progress
        self._worker: Worker | None = None
        self._part, self._parts = 0, 1

    def begin_part(self, part: int, parts: int) -> None:
        """The next texts are part `part`, from 0, of so many: their progress goes on from there."""
        self._part, self._parts = part, parts

    def __call__(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        """Embed texts as queries or as documents: (len(texts), dimension)."""
        part, parts = self._part, self._parts
        self.begin_part(0, 1)

        def tell(message: str, share: float | None) -> None:
            self._progress(message, None if share is None else (part + share) / parts)

        engine = self._engine.model_dump(mode="json")
        identity = [self._artifact.sha256, engine, self._isa, role, BATCH_SIZE[role], list(texts)]
        path = self._cache / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.npy"
        if path.is_file():
            try:
                kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
                if kept.shape[0] == len(texts):
                    return kept
            except (OSError, ValueError, EOFError):
                path.unlink()  # cut short by a full disk or a crash: made again below
        self._cache.mkdir(parents=True, exist_ok=True)
        if self._worker is None:
            environment = self._engine.environment(self._isa) if self._isa else None
            self._worker = Worker(self.serve, {"path": str(self._artifact.path), "engine": engine}, environment)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix="staging-") as staging:
            made = Path(staging) / "rows.npy"
            request = {"texts": list(texts), "prompt": role, "batch_size": BATCH_SIZE[role], "out": str(made)}
            self._worker.request(request, tell)
            made.replace(path)
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process that embeds."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
