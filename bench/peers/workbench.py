"""The parent's side: builds each peer once, tests it, embeds with it, and times all of them in alternation."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.artifacts import Made
from bench.peers import serving
from bench.peers.base import Interface, Peer, Source
from bench.peers.environment import ENVIRONMENTS, interpreter
from bench.peers.serving import BATCH_SIZE
from optbench.errors import OptbenchError
from optbench.machine.cpu import read_machine, usable_threads
from optbench.machine.worker import Worker
from optbench.measure.latency import RoundTimes, random_inputs, time_in_rounds
from optbench.model.checkpoint import read_body
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.run.cache import Cache
from optbench.tasks.retail import Retail

__all__ = ["LENGTHS", "Bench", "Built", "texts_by_length"]

logger = logging.getLogger(__name__)

LENGTHS = (8, 16, 32, 64, 128)
# Enough real texts for every peer's default; the accuracy task has other product types.
CALIBRATION_TEXTS = 1000
DISTINCT_TEXTS = 8


@dataclass(frozen=True)
class Built:
    """A peer that is ready, or the reason why it is not.

    Attributes:
        folder: what it built; empty if it builds nothing.
        seconds: duration of the build.
        versions: of its libraries.
        reason: why it cannot run; None if it can.
    """

    folder: Path
    seconds: float = 0.0
    versions: Mapping[str, str] | None = None
    reason: str | None = None


class Bench:
    """One model, and all peers on it."""

    def __init__(self, made: Made, cache: Cache) -> None:
        """Builds nothing yet.

        Args:
            made: the model.
            cache: optbench's cache; it keeps the environments and what peers build.
        """
        self.made, self._cache, self.threads = made, cache, usable_threads()
        calibration = Retail().calibration_texts(CALIBRATION_TEXTS)
        self.source = Source(
            checkpoint=made.base.path,
            export=made.export.path,
            final=made.final.path,
            final_engine=made.recipe.engine_for(made.final.kind).model_dump(mode="json"),
            texts=(*calibration.queries, *calibration.documents),
            isa=read_machine().isa,
        )
        self._built: dict[tuple[str, Interface], Built] = {}

    def start(self, peer: Peer, function: str, **payload: Any) -> Worker:
        """A process of the peer's environment that serves a function of `bench.peers.serving`."""
        whole = {
            "peer": peer.name,
            "interface": peer.interface,
            "source": self.source.model_dump(mode="json"),
            "threads": self.threads,
            "lengths": LENGTHS,
            **payload,
        }
        environment = {
            "OMP_NUM_THREADS": str(self.threads),
            "TORCHINDUCTOR_CACHE_DIR": str(self._cache.root / "peers" / "inductor"),
            "HF_HOME": str(self._cache.root / "peers" / "huggingface"),
        }
        python = interpreter(peer.environment, self._cache)
        return Worker(getattr(serving, function), whole, environment, python=python)

    def build(self, peer: Peer) -> Built:
        """Build a peer and run it once at every length. Builds are cached; failures are remembered for this session."""
        key = (peer.name, peer.interface)
        if key not in self._built:
            try:
                self._built[key] = self._build_and_try(peer)
            except (OptbenchError, RuntimeError) as error:
                # Every failure becomes a row: whether a peer runs is a result too.
                self._built[key] = Built(Path(), reason=str(error).strip().splitlines()[-1])
        return self._built[key]

    def _build_and_try(self, peer: Peer) -> Built:
        said = ["build", peer.build_name, peer.version, ENVIRONMENTS[peer.environment].key]
        needs = [self.made.base.sha256, self.made.export.sha256, self.source.texts, self.source.isa]
        digest = hashlib.sha256(json.dumps([*said, *needs]).encode()).hexdigest()[:16]
        folder = self._cache.root / "peers" / f"{peer.build_name}-{digest}"
        report = folder / "built.json"
        if not report.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                with self.start(peer, "serve_build", out=str(folder)) as worker:
                    answer = worker.request({})
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            report.write_text(json.dumps(answer), encoding="utf-8")
        answer = json.loads(report.read_text(encoding="utf-8"))
        built = Built(folder, answer["seconds"], answer["versions"])
        tried = folder / f"tried-{peer.interface}"
        if not tried.is_file():
            with self._start_timing(peer, built) as worker:
                for length in LENGTHS:
                    worker.request({"do": "block", "runs": [[length, 1]]})
            tried.touch()
        return built

    def _start_timing(self, peer: Peer, built: Built) -> Worker:
        texts = texts_by_length(self.source.checkpoint) if peer.interface == "text" else {}
        return self.start(peer, "serve_timing", built=str(built.folder), texts=texts)

    def time(self, peers: Sequence[Peer], rounds: int, processes: int) -> dict[str, RoundTimes]:
        """Time all peers that can run, in alternation; by name."""
        models = [(peer.name, partial(self._start_timing, peer, built)) for peer in peers if (built := self.build(peer)).reason is None]
        times = time_in_rounds(models, LENGTHS, rounds=rounds, processes=processes, progress=_log)
        return {name: each for (name, _), each in zip(models, times, strict=True)}

    def embed(self, peer: Peer, queries: Sequence[str], documents: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A peer's vectors: queries one by one, as in a service, documents in batches. Cached beside the build.

        Raises:
            OptbenchError: the peer fails on some of them.
        """
        folder = self.build(peer).folder
        digest = hashlib.sha256(json.dumps([list(queries), list(documents)]).encode()).hexdigest()[:16]
        found = [folder / f"{side}-{peer.interface}-{digest}.npy" for side in ("queries", "documents")]
        if not all(path.is_file() for path in found):
            with tempfile.TemporaryDirectory(dir=folder) as scratch, self.start(peer, "serve_vectors", built=str(folder)) as worker:
                for path, texts, batch in zip(found, (queries, documents), (1, BATCH_SIZE), strict=True):
                    out = Path(scratch) / path.name
                    if texts:
                        worker.request({"texts": list(texts), "batch": batch, "out": str(out)})
                    else:
                        np.save(out, np.empty((0, 0), np.float32))
                    out.replace(path)
        vectors, index = map(np.load, found)
        return vectors, index


def _log(message: str, share: float | None) -> None:
    logger.info("%s", message)


def texts_by_length(checkpoint: Path) -> dict[int, list[str]]:
    """Texts of exactly these numbers of tokens, special tokens included, for the checkpoint's tokenizer: the timing ids as text.

    Raises:
        OptbenchError: the vocabulary has no words that remain one token within a sentence.
    """
    tokenizer = load_tokenizer(checkpoint)
    ids = random_inputs((max(LENGTHS) * DISTINCT_TEXTS,), 1, read_body(checkpoint).vocabulary)[max(LENGTHS) * DISTINCT_TEXTS]
    drawn = [tokenizer.id_to_token(int(token)) or "" for each, _ in ids for token in each[0]]
    candidates = [word for token in dict.fromkeys(drawn) if (word := token.removeprefix("▁")).isalpha() and word.isascii()]
    special = encode_batch(tokenizer, [""])[0].shape[1]
    words = [word for word in candidates if len(tokenizer.encode(word).ids) == special + 1]
    found = {}
    for length in LENGTHS:
        starts = [index * (length - special) for index in range(DISTINCT_TEXTS)]
        found[length] = [" ".join(words[(start + place) % len(words)] for place in range(length - special)) for start in starts]
        wrong = [text for text in found[length] if len(tokenizer.encode(text).ids) != length]
        if wrong:
            raise OptbenchError(f"{checkpoint}: {wrong[0]!r} has not {length} tokens; texts of a given length cannot be made")
    return found
