"""Embeddings of many texts by one artifact, computed in a separate process and cached by content."""

import hashlib
import json
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from optbench.machine.disk import full_disk_errors
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker
from optbench.measure.subject import Subject

__all__ = ["BATCH_SIZE", "Role", "TextEncoder"]

Role = Literal["query", "document"]
# Queries are embedded one at a time, as in a service: some int8 models give other vectors in a batch. Documents are indexed in batches.
BATCH_SIZE: dict[Role, int] = {"query": 1, "document": 32}
# Texts between two progress reports.
CHUNK = 256


def serve_texts(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Worker process of `TextEncoder`: open the subject once, then embed lists of texts into .npy files."""
    from optbench.encoder import load

    subject = Subject.received(payload)
    encoder = load(subject.artifact.path, engine=subject.engine)
    while True:
        request: dict[str, Any] = yield
        texts = request["texts"]
        # Sorted over the whole list: the encoder sorts only within a chunk.
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
    """Embeds texts with a subject, which is opened at the first text without cached vectors."""

    serve = staticmethod(serve_texts)

    def __init__(self, subject: Subject, cache: Path, progress: Progress = silent) -> None:
        self._subject, self._cache, self._progress = subject, cache, progress
        self._worker: Worker | None = None
        self._part, self._parts = 0, 1

    def begin_part(self, part: int, parts: int) -> None:
        """Report the progress of the next call as that of part `part` (from 0) of `parts`."""
        self._part, self._parts = part, parts

    def __call__(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        """Embed texts as queries or as documents: (len(texts), dimension)."""
        part, parts = self._part, self._parts
        self.begin_part(0, 1)

        def report_part(message: str, share: float | None) -> None:
            self._progress(message, None if share is None else (part + share) / parts)

        subject = self._subject
        identity = [subject.artifact.sha256, subject.engine_options, subject.isa, role, BATCH_SIZE[role], list(texts)]
        path = self._cache / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.npy"
        if path.is_file():
            try:
                kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
                if kept.shape[0] == len(texts):
                    return kept
            except (OSError, ValueError, EOFError):
                path.unlink()  # truncated by a full disk or a crash: computed again below
        self._cache.mkdir(parents=True, exist_ok=True)
        if self._worker is None:
            self._worker = subject.start(self.serve, {})
        with tempfile.TemporaryDirectory(dir=self._cache, prefix="staging-") as staging:
            made = Path(staging) / "rows.npy"
            request = {"texts": list(texts), "prompt": role, "batch_size": BATCH_SIZE[role], "out": str(made)}
            self._worker.request(request, report_part)
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
