"""Embeddings of many texts by one artifact, computed in a separate process and cached by content."""

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from optbench.machine.disk import full_disk_errors
from optbench.machine.progress import Progress, silent
from optbench.machine.staging import STAGING, staging_folder
from optbench.machine.worker import Worker
from optbench.measure.subject import Subject

__all__ = ["BATCH_SIZE", "Role", "TextEncoder"]

Role = Literal["query", "document"]
# Queries are embedded one at a time, as in a service: some int8 models give other vectors in a batch. Documents are indexed in batches.
BATCH_SIZE: dict[Role, int] = {"query": 1, "document": 32}
REPORT_SECONDS = 0.5
NOUN = {"query": "queries", "document": "documents"}


def serve_texts(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Worker process of `TextEncoder`: open the subject once, then embed lists of texts into .npy files."""
    from optbench.encoder import load

    subject = Subject.received(payload)
    encoder = load(subject.artifact.path, engine=subject.engine)
    while True:
        request: dict[str, Any] = yield
        # The encoder sorts by length, and runs batches on every core at once.
        rows = encoder.encode(request["texts"], prompt=request["prompt"], batch_size=request["batch_size"], progress=_at_times(progress))
        out = Path(request["out"])
        with full_disk_errors(out.parent):
            np.save(out, rows)


def _at_times(progress: Progress) -> Progress:
    """Report every half second and at the end: single queries may take less than a millisecond each."""
    told = float("-inf")

    def report(message: str, share: float | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= REPORT_SECONDS or share == 1:
            told = now
            progress(message, share)

    return report


class TextEncoder:
    """Embeds texts with a subject, which is opened at the first text without cached vectors."""

    serve = staticmethod(serve_texts)

    def __init__(self, subject: Subject, cache: Path, progress: Progress = silent) -> None:
        self._subject, self._cache, self._progress = subject, cache, progress
        self._worker: Worker | None = None
        self._name, self._done, self._total = "", 0, 0

    def expect(self, total: int) -> None:
        """Report progress from here on as a share of `total` texts, over several calls."""
        self._done, self._total = 0, total

    def begin(self, name: str) -> None:
        """Report what is embedded from here on as texts of `name`."""
        self._name = f"{name}: "

    def __call__(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        """Embed texts as queries or as documents: (len(texts), dimension)."""
        done = self._done if self._total else 0
        total = max(self._total, done + len(texts))
        self._done += len(texts)

        def report(message: str, share: float | None) -> None:
            made = round((share or 0.0) * len(texts))
            self._progress(f"{self._name}{made:,} of {len(texts):,} {NOUN[role]}", (done + made) / total)

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
        with staging_folder(self._cache, STAGING) as staging:
            made = staging / "rows.npy"
            request = {"texts": list(texts), "prompt": role, "batch_size": BATCH_SIZE[role], "out": str(made)}
            report("", 0.0)
            self._worker.request(request, report)
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
