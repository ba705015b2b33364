"""AsyncEncoder: concurrent callers share batches, and each gets its own result or error."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import optbench
from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.encoder import AsyncEncoder, Encoder, load
from optbench.errors import ArtifactError, EngineError

TEXTS = ["red shoe", "blue waterproof running boot", "", "laptop", "small wireless mouse cable", "oak desk " * 20]
# As in test_encoder.py: another batch adds the same float32 terms in another order.
ABSOLUTE = 3e-6


@pytest.fixture
def encoder(make_artifact: Callable[..., Artifact]) -> Iterator[Encoder]:
    with load(make_artifact(Kind.ONNX, prompt="red ").path, threads=1) as opened:
        yield opened


def test_concurrent_callers_get_their_own_rows(encoder: Encoder) -> None:
    async def main() -> list[NDArray[np.float32]]:
        async with AsyncEncoder(encoder, max_delay_ms=1, max_batch=4) as shared:
            return await asyncio.gather(*(shared.encode(text) for text in TEXTS * 5))

    for row, text in zip(asyncio.run(main()), TEXTS * 5, strict=True):
        np.testing.assert_allclose(row, encoder.encode(text), atol=ABSOLUTE)


def test_results_and_errors_are_those_of_the_encoder(encoder: Encoder) -> None:
    async def main() -> None:
        async with AsyncEncoder(encoder, max_batch=2) as shared:
            np.testing.assert_allclose(await shared.encode(iter(TEXTS)), encoder.encode(TEXTS), atol=ABSOLUTE)
            np.testing.assert_allclose(await shared.encode_query("shoe"), encoder.encode_query("shoe"), atol=ABSOLUTE)
            np.testing.assert_allclose(await shared.encode_document(TEXTS), encoder.encode_document(TEXTS), atol=ABSOLUTE)
            assert (await shared.encode([])).shape == (0, 32)
            with pytest.raises(TypeError, match="found NoneType"):
                await shared.encode(None)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate"):
                await shared.encode(["red", "\ud800"])
            with pytest.raises(ArtifactError, match="has no prompt 'passage'"):
                await shared.encode("red", "passage")
        with pytest.raises(EngineError, match="closed"):
            await shared.encode("red")

    asyncio.run(main())


def test_what_comes_during_a_run_shares_the_next_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    begun, go = threading.Event(), threading.Event()
    embed = encoder.embed

    def held(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Any:
        shapes.append(len(input_ids))
        begun.set()
        assert go.wait(60)
        return embed(input_ids, attention_mask)

    monkeypatch.setattr(encoder, "embed", held)

    async def main() -> None:
        async with AsyncEncoder(encoder, max_batch=8) as shared:
            first = asyncio.create_task(shared.encode("red"))
            # The event loop is free while the batch runs.
            await asyncio.to_thread(begun.wait, 60)
            others = [asyncio.create_task(shared.encode(text)) for text in ("blue", "oak", "lamp")]
            cancelled = asyncio.create_task(shared.encode("desk"))
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.sleep(0)
            go.set()
            await asyncio.gather(first, *others)

    asyncio.run(main())
    assert shapes == [1, 3]


@pytest.mark.parametrize("options", [{"max_delay_ms": -1.0}, {"max_batch": 0}])
def test_limits_that_make_no_sense_are_refused(encoder: Encoder, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least 0 and 1"):
        AsyncEncoder(encoder, **options)


def test_async_encoder_is_public() -> None:
    assert optbench.AsyncEncoder is AsyncEncoder
