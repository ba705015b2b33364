"""Texts per second by the most tokens of a run, in one session and in streams: what `engines.batching.TOKENS_MAX` should be.

    python -m bench.studies.batch_tokens exported/minilm-l6

Runs from token ids to vectors, in alternation, on part of the texts of `bench/throughput.py`.
"""

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import optbench  # noqa: F401  # first: it keeps openvino's telemetry from loading
from bench.throughput import make_texts
from optbench.artifact.folder import open_artifact
from optbench.engines.choice import choose_engine
from optbench.model.checkpoint import read_body
from optbench.model.padding import pad_batch
from optbench.model.tokenizer import encode_batch, load_tokenizer

TOKENS = (128, 256, 512, 1024)
BATCH = 64
N_TEXTS = {"short": 500, "long": 40}
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def batches_of(rows: list[NDArray[np.int64]], tokens: int, pad_id: int) -> Iterator[Batch]:
    """Texts, longest first, in batches of at most so many tokens, padding included."""
    ordered = sorted(rows, key=len, reverse=True)
    start = 0
    while start < len(ordered):
        size = max(1, min(BATCH, tokens // len(ordered[start])))
        yield pad_batch(ordered[start : start + size], pad_id)
        start += size


def main() -> None:
    """Time each in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    artifact = open_artifact(arguments.folder)
    engine = choose_engine(artifact, None, {})
    session, streams = engine.open(artifact), engine.open_streams(artifact)
    if streams is None:
        raise SystemExit("one thread, or an engine without streams: nothing to compare")
    tokenizer, pad_id = load_tokenizer(artifact.path), read_body(artifact.path).pad_id

    def in_session(batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        return (session.embed(*batch) for batch in batches)

    for workload, texts in make_texts().items():
        ids, mask = encode_batch(tokenizer, texts[: N_TEXTS[workload]])
        rows = [row[:length] for row, length in zip(ids, mask.sum(axis=1), strict=True)]
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.rounds):
            for tokens in TOKENS:
                for name, embed in {"session": in_session, "streams": streams.embed_batches}.items():
                    begin = time.perf_counter()
                    for _ in embed(batches_of(rows, tokens, pad_id)):
                        pass
                    rates.setdefault((name, tokens), []).append(len(rows) / (time.perf_counter() - begin))
        print(f"{len(rows)} {workload} texts of {np.mean([len(row) for row in rows]):.0f} tokens, texts/s, median of {arguments.rounds}")
        for (name, tokens), each in rates.items():
            print(f"  {name}, {tokens:5} tokens per run: {statistics.median(each):.1f}")


if __name__ == "__main__":
    main()
