"""The child's side: a peer in a process of its environment, driven by optbench's worker."""

import contextlib
import os
import time
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.base import Peer, PeerError, Source
from bench.peers.catalog import PEERS
from optbench.measure.latency import answer_rounds, random_inputs
from optbench.model.checkpoint import read_body
from optbench.model.tokenizer import encode_batch, load_tokenizer

__all__ = ["serve_build", "serve_timing", "serve_vectors"]

Progress = Callable[[str, float | None], None]
BATCH_SIZE = 32


def _peer(payload: dict[str, Any]) -> tuple[Peer, Source]:
    # No library may try to reach a model hub.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    peer = next(peer for peer in PEERS if (peer.name, peer.interface) == (payload["peer"], payload["interface"]))
    return peer, Source.model_validate(payload["source"])


@contextlib.contextmanager
def _named(peer: Peer, doing: str) -> Any:
    """Turn any failure of a library into the row's reason, so that one broken peer does not stop the others."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise PeerError(f"{peer.name}: {doing} failed: {type(error).__name__}: {first}") from error


def serve_build(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Build into the folder; answer with the duration and the library versions."""
    yield
    peer, source = _peer(payload)
    start = time.perf_counter()
    with _named(peer, "building"):
        peer.build(source, Path(payload["out"]))
    yield {"seconds": time.perf_counter() - start, "versions": {name: version(name) for name in peer.libraries}}


def serve_timing(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Open, then answer what `time_in_rounds` asks."""
    peer, source = _peer(payload)
    start = time.perf_counter_ns()
    with _named(peer, "opening"):
        embed = peer.open(source, Path(payload["built"]), payload["threads"])
    load_ms = (time.perf_counter_ns() - start) / 1e6
    lengths = payload["lengths"]
    inputs: Any
    if peer.interface == "text":
        inputs = {length: [[text] for text in payload["texts"][str(length)]] for length in lengths}
    else:
        inputs = random_inputs(lengths, 1, read_body(source.checkpoint).vocabulary)
    with _named(peer, "running"):
        yield from answer_rounds(embed, inputs, load_ms)


def serve_vectors(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Open, then embed lists of texts into .npy files: queries one by one, as a service sends them, documents in batches of like length."""
    peer, source = _peer(payload)
    with _named(peer, "opening"):
        embed = peer.open(source, Path(payload["built"]), payload["threads"])
    tokenizer = load_tokenizer(source.checkpoint)
    while True:
        request: dict[str, Any] = yield
        texts, size = request["texts"], request["batch"]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: dict[int, Any] = {}
        with _named(peer, "embedding"):
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                chosen = [texts[index] for index in batch]
                rows |= zip(batch, embed(chosen if peer.interface == "text" else encode_batch(tokenizer, chosen)), strict=True)
        np.save(request["out"], np.stack([rows[index] for index in range(len(texts))]).astype(np.float32))
