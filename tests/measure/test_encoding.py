"""Texts become vectors once: what an artifact has embedded is found again, whoever asks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.measure import subject as subject_module
from optbench.measure.encoding import TextEncoder
from optbench.measure.subject import Subject

TEXTS = ["red shoe", "blue running shoe", "oak desk lamp small", "red shoe"]


def test_vectors_are_made_once_and_progress_says_what_is_embedded_and_how_far_it_is(
    make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float | None]] = []

    def report(message: str, share: float | None) -> None:
        told.append((message, share))

    artifact = make_artifact(Kind.ONNX)
    with TextEncoder(Subject(artifact, OnnxRuntime()), tmp_path / "cache", progress=report) as encode:
        encode.expect(44)
        encode.begin("beir:shop")
        made = encode(TEXTS, "document")
        encode(TEXTS, "query")
        encode([f"red shoe {number}" for number in range(36)], "query")
        # What is told in between depends on the clock.
        assert (told[0], told[1]) == (("beir:shop: 0 of 4 documents", 0.0), ("beir:shop: 4 of 4 documents", 4 / 44))
        assert ("beir:shop: 0 of 36 queries", 8 / 44) in told
        assert told[-1] == ("beir:shop: 36 of 36 queries", 1.0)
        shares = [share for _, share in told if share is not None]
        assert shares == sorted(shares)
        files = sorted((tmp_path / "cache").glob("*.npy"))
        assert len(files) == 3  # a query comes alone and a document in a batch, so each has its own
        for file in files:
            file.write_bytes(file.read_bytes()[:-8])  # cut short, as by a crash
        assert np.array_equal(encode(TEXTS, "document"), made)
    monkeypatch.setattr(subject_module, "Worker", None)  # from here on, to start a process is an error
    again = TextEncoder(Subject(artifact, OnnxRuntime()), tmp_path / "cache")(TEXTS, "document")
    assert np.array_equal(again, made)
