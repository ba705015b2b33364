"""Latency of every exported artifact whose weights are here, at each of its recipe's lengths.

    pytest bench/ --benchmark-group-by=param:length --benchmark-json=latency.json

For figures to compare with each other use `optbench apply` or `optbench measure`, which alternate between models.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optbench.artifact import open_artifact
from optbench.checkpoint import read_body
from optbench.encoder import choose_engine
from optbench.engines import Session
from optbench.machine import read_machine
from optbench.record import newest_record

EXPORTED = Path(__file__).parent.parent / "exported"
LENGTHS = (8, 16, 32, 64, 128)


def exported_folders() -> list[Path]:
    """Folders with weights: a fresh checkout has the records alone."""
    folders = [path.parent for path in sorted(EXPORTED.glob("*/manifest.json"))]
    return [folder for folder in folders if any(folder.glob("onnx/*.onnx")) or any(folder.glob("openvino/*.bin"))]


@pytest.fixture(scope="module", params=exported_folders(), ids=lambda folder: folder.name)
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Session]]:
    artifact = open_artifact(request.param)
    session = choose_engine(artifact, None, {}).open(artifact)
    yield request.param, session
    session.close()


@pytest.mark.parametrize("length", LENGTHS)
def test_latency(benchmark: Any, opened: tuple[Path, Session], length: int) -> None:
    folder, session = opened
    vocabulary = read_body(folder).vocabulary
    input_ids = np.random.default_rng(length).integers(5, vocabulary, (1, length), dtype=np.int64)
    benchmark.extra_info |= {"machine": read_machine().model_dump(mode="json"), "weights": newest_record(folder).weights}
    vector = benchmark(session.embed, input_ids, np.ones_like(input_ids))
    assert np.isfinite(vector).all()
