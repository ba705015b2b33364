"""Streams: many batches at once give what one session gives batch by batch, in order, and end cleanly."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.engines import Streams
from optbench.engines import openvino as openvino_module
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch
from optbench.errors import EngineError

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
# More batches than requests in flight, of shapes that repeat and shapes that do not.
SHAPES = [(3, 16), (4, 12), (1, 12), (4, 12), (2, 7), (5, 7), (5, 3), (1, 1), (2, 3)]
ENGINES = [(Kind.ONNX, OnnxRuntime(threads=2)), (Kind.OPENVINO, OpenVino())]


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO refuses more threads than cores; on one core it then runs two streams on it."""
    monkeypatch.setattr(openvino_module, "usable_threads", lambda: 2)


def batches() -> Iterator[Batch]:
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        mask = np.ones(shape, dtype=np.int64)
        mask[-1, shape[1] // 2 + 1 :] = 0
        yield generator.integers(4, 21, shape), mask


@pytest.fixture(params=ENGINES, ids=["onnxruntime", "openvino"])
def opened(request: pytest.FixtureRequest, make_artifact: Callable[..., Artifact]) -> Iterator[tuple[Streams, list[NDArray[np.float32]]]]:
    """Streams, and what a session of the same engine makes of each batch."""
    kind, engine = request.param
    session, streams = engine.open(make_artifact(kind)), engine.open_streams(make_artifact(kind))
    assert streams is not None
    yield streams, [session.embed(*batch) for batch in batches()]
    session.close()
    streams.close()


Opened = tuple[Streams, list[NDArray[np.float32]]]


def assert_equal(found: list[NDArray[np.float32]], expected: list[NDArray[np.float32]]) -> None:
    for rows, wanted in zip(found, expected, strict=True):
        # The same fp32 sums, perhaps in another order, of unit vectors.
        np.testing.assert_allclose(rows, wanted, atol=3e-6)


def test_rows_come_in_the_order_of_the_batches(opened: Opened) -> None:
    streams, expected = opened
    for _ in range(3):
        assert_equal(list(streams.embed_batches(batches())), expected)
    assert list(streams.embed_batches(iter(()))) == []


def test_calls_from_several_threads_share_the_streams(opened: Opened) -> None:
    streams, expected = opened
    found: list[list[NDArray[np.float32]]] = []
    threads = [threading.Thread(target=lambda: found.append(list(streams.embed_batches(batches())))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for each in found:
        assert_equal(each, expected)


def test_error_in_the_source_of_batches_comes_through_and_the_next_call_works(opened: Opened) -> None:
    streams, expected = opened

    def failing() -> Iterator[Batch]:
        yield from list(batches())[:3]
        raise KeyError("text 3")

    with pytest.raises(KeyError, match="text 3"):
        list(streams.embed_batches(failing()))
    left = streams.embed_batches(batches())
    next(left)
    left.close()  # type: ignore[attr-defined]  # a caller that reads no further
    assert_equal(list(streams.embed_batches(batches())), expected)


def test_id_beyond_the_vocabulary_is_refused(opened: Opened) -> None:
    streams, _ = opened
    ids = np.full((2, 3), 10_000)
    with pytest.raises(EngineError, match=r"10000|failed on \(2, 3\) tokens"):
        list(streams.embed_batches([(ids, np.ones_like(ids))]))


def test_closed_streams_say_so(opened: Opened) -> None:
    streams, _ = opened
    streams.close()
    with pytest.raises(EngineError, match="the session is closed"):
        list(streams.embed_batches(batches()))


@pytest.mark.parametrize(("kind", "engine"), [(Kind.ONNX, OnnxRuntime(threads=1)), (Kind.OPENVINO, OpenVino(threads=1))])
def test_one_thread_has_no_streams(make_artifact: Callable[..., Artifact], kind: Kind, engine: Any) -> None:
    assert engine.open_streams(make_artifact(kind)) is None


def test_engine_without_streams_says_so(make_checkpoint: Callable[..., Artifact]) -> None:
    assert Torch(threads=2).open_streams(make_checkpoint()) is None
