"""Texts per second of `Encoder.encode`, against plain OpenVINO and sentence-transformers on the same folder.

    python -m bench.throughput exported/minilm-l6
    python -m bench.throughput exported/minilm-l6 --only short --rounds 5

Each runs from texts to vectors, in alternation, after a warm-up: 2,000 short texts (retail queries) and 500 long ones (retail
documents, joined). *Plain* is what one writes by hand: the tokenizers library and an `AsyncInferQueue` on a graph compiled for
throughput, with one text per request, or with batches of 32 texts of similar length. *sentence-transformers* is its OpenVINO backend.
Prints the median of the rounds with their range, and the ratios round by round. The first run installs the environment that
sentence-transformers' backend needs.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import optbench
from bench.artifacts import user_cache
from optbench.engines.contract import EMBEDDING, INPUTS
from optbench.loaders.environments import ST6_OPENVINO, clean_variables, make_environment
from optbench.model.checkpoint import read_body
from optbench.model.padding import pad_batch
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.tasks import RetrievalData, load_tasks
from optbench.tasks.retail import Retail

N_SHORT, N_LONG = 2000, 500
# Texts whose vectors are compared first, which also warms up.
N_CHECKED = 64
WORDS_OF_A_LONG_TEXT = 80
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def make_texts() -> dict[str, list[str]]:
    """The short and the long texts; no two in a row are alike."""
    (retail,) = load_tasks((Retail(),))
    assert isinstance(retail, RetrievalData)
    short = list(itertools.islice(itertools.cycle(retail.queries.values()), N_SHORT))
    words = itertools.cycle(" ".join(retail.documents.values()).split())
    # A third to three halves of the mean length, by turns.
    lengths = [WORDS_OF_A_LONG_TEXT * (2 + index % 8) // 6 for index in range(N_LONG)]
    return {"short": short, "long": [" ".join(itertools.islice(words, length)) for length in lengths]}


def plain_openvino(folder: Path, batch_size: int) -> Encode:
    """OpenVINO's asynchronous queue, by hand."""
    import openvino as ov

    tokenizer, pad_id = load_tokenizer(folder), read_body(folder).pad_id
    core = ov.Core()
    model = core.read_model(folder / "openvino" / "openvino_model.xml")
    for port in model.outputs:
        if EMBEDDING not in port.names:
            model.remove_result(port.node)
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"})
    dimension = model.output(0).partial_shape[1].get_length()

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        out = np.empty((len(texts), dimension), dtype=np.float32)
        queue = ov.AsyncInferQueue(compiled)

        def receive(request: Any, indices: list[int]) -> None:
            out[indices] = request.get_output_tensor(0).data

        queue.set_callback(receive)
        ids, mask = encode_batch(tokenizer, texts)
        rows = [row[:length] for row, length in zip(ids, mask.sum(axis=1), strict=True)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            queue.start_async(dict(zip(INPUTS, pad_batch([rows[index] for index in part], pad_id), strict=True)), part)
        queue.wait_all()
        return out

    return encode


# Runs in the environment that can hold sentence-transformers' OpenVINO backend: reads texts as JSON lines, writes vectors to files.
CHILD = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], backend="openvino", device="cpu")
print("ready", flush=True)
for line in sys.stdin:
    np.save(sys.argv[2], model.encode(json.loads(line)))
    print("done", flush=True)
"""


@contextmanager
def sentence_transformers(folder: Path) -> Iterator[Encode]:
    """sentence-transformers' OpenVINO backend, with its defaults, in a process that waits while the others run."""
    python = make_environment(ST6_OPENVINO, user_cache().environments)
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.npy"
        command = [str(python), "-c", CHILD, str(folder.absolute()), str(rows)]
        # Its log goes to a file: a pipe that nobody reads would fill up.
        with (
            (Path(scratch) / "log").open("w") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_variables()) as child,
        ):
            assert child.stdin is not None
            assert child.stdout is not None
            source, answers = child.stdin, child.stdout

            def wait_for(word: str) -> None:
                if (line := answers.readline().strip()) != word:
                    raise SystemExit(f"sentence-transformers: {line or (Path(scratch) / 'log').read_text()[-2000:]}")

            def encode(texts: Sequence[str]) -> NDArray[np.float32]:
                source.write(json.dumps(texts) + "\n")
                source.flush()
                wait_for("done")
                return np.load(rows)  # type: ignore[no-any-return]

            wait_for("ready")
            yield encode
            source.close()


def main() -> None:
    """Time each in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["short", "long"])
    arguments = parser.parse_args()
    encoder = optbench.load(arguments.folder)
    encoder.warm_up(streams=True)
    with sentence_transformers(arguments.folder) as reference:
        candidates: dict[str, Encode] = {
            "optbench": encoder.encode,
            "plain, one text per request": plain_openvino(arguments.folder, 1),
            "plain, batches of 32": plain_openvino(arguments.folder, 32),
            "sentence-transformers": reference,
        }
        for workload, texts in make_texts().items():
            if arguments.only in (None, workload):
                compare(workload, texts, candidates, arguments.rounds)


def compare(workload: str, texts: list[str], candidates: dict[str, Encode], rounds: int) -> None:
    """Run each candidate once per round."""
    expected = candidates["optbench"](texts[:N_CHECKED])
    for name, encode in candidates.items():
        cosine = float((encode(texts[:N_CHECKED]) * expected).sum(axis=1).min())
        if cosine < 0.999:
            raise SystemExit(f"{name}: other vectors than optbench's, cosine {cosine:.5f}: the comparison would be void")
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds):
        # The order rotates: what a process leaves running, or the heat of the last run, slows down another each time.
        for name in [*candidates][turn % len(candidates) :] + [*candidates][: turn % len(candidates)]:
            encode = candidates[name]
            begin = time.perf_counter()
            encode(texts)
            rates[name].append(len(texts) / (time.perf_counter() - begin))
        print(f"round: {', '.join(f'{name} {each[-1]:.1f}' for name, each in rates.items())}", file=sys.stderr, flush=True)
    print(f"{len(texts)} {workload} texts, texts/s: median (range) of {rounds} rounds", flush=True)
    for name, each in rates.items():
        ratios = [mine / other for mine, other in zip(rates["optbench"], each, strict=True)]
        compared = "" if name == "optbench" else f"; optbench is {spread(ratios, 2)} times as fast"
        print(f"  {name:28} {spread(each, 0)}{compared}", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
