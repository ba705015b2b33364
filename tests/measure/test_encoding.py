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


def test_vectors_are_made_once_and_progress_counts_over_all_parts(
    make_artifact: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    def report(message: str, share: float | None) -> None:
        assert share is not None
        told.append(share)

    artifact = make_artifact(Kind.ONNX)
    with TextEncoder(Subject(artifact, OnnxRuntime()), tmp_path / "cache", progress=report) as encode:
        encode.begin_part(3, 4)
        made = encode(TEXTS, "document")
        assert told == [0.75]  # one chunk, at the beginning of the last of four parts
        encode(TEXTS, "query")
        assert told == [0.75, 0.0]  # a part's place holds for what follows it only
        files = sorted((tmp_path / "cache").glob("*.npy"))
        assert len(files) == 2  # a query comes alone and a document in a batch, so each has its own
        files[0].write_bytes(files[0].read_bytes()[:-8])  # cut short, as by a crash
        files[1].write_bytes(files[1].read_bytes()[:-8])
        assert np.array_equal(encode(TEXTS, "document"), made)
    monkeypatch.setattr(subject_module, "Worker", None)  # from here on, to start a process is an error
    again = TextEncoder(Subject(artifact, OnnxRuntime()), tmp_path / "cache")(TEXTS, "document")
    assert np.array_equal(again, made)
