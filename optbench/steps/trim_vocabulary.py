"""Remove from a checkpoint's vocabulary what its texts never use: rows of the embedding table, and pieces of the tokenizer.

A multilingual table is most of the model on disk and in memory (250,002 x 1024 fp32 are 1.02 GB of snowflake-arctic-embed-l's
2.27), and most of its rows belong to languages that a service never sees. Texts whose pieces are all kept are tokenized and
embedded exactly as before; other texts are spelled with the remaining pieces, at worst character by character.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.model.checkpoint import describe
from optbench.steps.base import BaseStep, CalibrationTexts, Input, RecipeFiles, StepContext, StepReport
from optbench.tasks.corpus import find_corpus, read_corpus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from optbench.machine.progress import Progress
    from optbench.model.safetensors import TensorSpan
    from optbench.steps.pruning.vocabulary import Pieces

__all__ = ["TrimVocabulary"]

TABLE = "word_embeddings.weight"
# Heads of the pretraining objective in some checkpoints: embeddings do not use them, and they have a row per piece too.
HEADS = ("lm_head.", "cls.")
BATCH_TEXTS = 1024
PROBLEM_CHARACTERS = 120


@dataclass(frozen=True)
class _Corpus:
    """Texts that can be read repeatedly: each alone and after every prompt, as a service sends it."""

    name: str
    open: Callable[[], Iterable[str]]
    prompts: tuple[str, ...]
    texts_max: int

    def read(self) -> Iterator[str]:
        for text in islice(self.open(), self.texts_max):
            yield from (prompt + text for prompt in self.prompts)

    def length(self, limit: int) -> int:
        return sum(1 for _ in islice(self.open(), limit))


class TrimVocabulary(BaseStep):
    """Keep the pieces that a corpus uses and those needed to spell any other text (WordPiece and Unigram)."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.CHECKPOINT})
    gives: ClassVar[Kind] = Kind.CHECKPOINT
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("tokenizers",)

    step: Literal["trim_vocabulary"] = "trim_vocabulary"
    corpus: tuple[Path, ...] = Field(
        default=(),
        description=(
            "Texts whose pieces are kept, in every language to be served: .txt (one per line), .jsonl, .csv, .tsv or .parquet (text, "
            "optionally title), or a BEIR folder's documents; paths relative to the recipe. The recipe's calibration texts if left out."
        ),
    )
    texts_max: int = Field(default=1_000_000, ge=1, description="At most so many texts of each corpus are read.")
    unknown_max: float = Field(default=0.02, ge=0, le=1, description="Largest allowed share of unknown tokens in a corpus.")
    coverage_min: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Smallest allowed share of calibration tokens whose piece is kept; less suggests a corpus in another language.",
    )

    def inputs(self) -> tuple[Input[Any], ...]:
        """Calibration texts, and the files of `corpus`."""
        return (CalibrationTexts(), RecipeFiles(self.files, self.check_corpus)) if self.corpus else (CalibrationTexts(),)

    def files(self, folder: Path) -> Mapping[str, Path]:
        """The corpora, by the path that the recipe writes."""
        return {str(path): find_corpus(folder / path) for path in self.corpus}

    def check_corpus(self, folder: Path) -> None:
        """Read the corpora once, as far as the step does; raises TaskError where one cannot be read."""
        for path in self.files(folder).values():
            for _ in islice(read_corpus(path), self.texts_max):
                pass

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Write `source` to `out` with fewer rows and pieces; refuse if one of the texts would be tokenized differently."""
        import numpy as np

        from optbench.model.safetensors import copy_rows, read_header
        from optbench.model.tokenizer import load_tokenizer
        from optbench.steps.pruning.vocabulary import read_pieces, renumber_companions, renumber_tokenizer

        description = describe(source.path)
        tokenizer = _whole_texts(load_tokenizer(source.path))
        pieces = read_pieces(source.path)
        spans = read_header(source.main_file)
        table_name, table = _find_table(spans, source.main_file, description.body.vocabulary, max(pieces.names))
        free_disk(out, source.size_bytes, "the model with a smaller vocabulary")

        corpora = self._corpora(context, source.path)
        counts = np.zeros(table.shape[0], dtype=np.int64)
        facts: dict[str, Any] = {}
        warnings = []
        for corpus in corpora:
            context.progress(f"counting the pieces of {corpus.name}", None)
            own, n_texts = _count(tokenizer, corpus.read(), table.shape[0])
            n_texts //= len(corpus.prompts)
            self._check_known(corpus.name, own, pieces, source.path)
            counts += own
            facts[corpus.name] = {"texts": n_texts, "tokens": int(own.sum()), "pieces": int((own > 0).sum())}
            if n_texts == corpus.texts_max < corpus.length(self.texts_max + 1):
                warnings.append(f"{corpus.name}: only its first {self.texts_max} texts were read; raise texts_max to read more")
        reasons = pieces.required(description.body.pad_id, keep_up_to_pad=description.body.architecture != "BertModel")
        counts[list(set().union(*reasons.values()))] += 1
        kept = np.flatnonzero(counts)
        coverage = self._check_coverage(tokenizer, context, kept, table.shape[0])
        new_ids = {int(index): place for place, index in enumerate(kept)}
        context.progress("writing the smaller model", None)
        copy_companions(source.path, out, leave_out=("tokenizer.json", "vocab.txt"))
        document = renumber_tokenizer(pieces, new_ids, source.path / "tokenizer.json")
        (out / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        renumber_companions(source.path, out, pieces, new_ids)
        heads = [name for name in spans if name.startswith(HEADS)]
        copy_rows(source.main_file, out / Kind.CHECKPOINT.main_file, rows={table_name: kept}, leave_out=heads)

        trimmed = _whole_texts(load_tokenizer(out))
        for corpus in corpora:
            context.progress(f"tokenizing {corpus.name} again", None)
            _check_same(tokenizer, trimmed, corpus.read(), new_ids, corpus.name)
        return StepReport(
            matched={"tables": 1},
            warnings=tuple(warnings),
            facts={
                "pieces_before": len(pieces.names),
                "pieces_after": len(kept),
                "kept_whatever_is_used": {reason: len(ids) for reason, ids in reasons.items()},
                "corpora": facts,
                "calibration_coverage": coverage,
                "left_out_heads": heads,
                "table_bytes_before": table.size_bytes,
                "table_bytes_after": table.size_bytes // table.shape[0] * len(kept),
                "tokenizer_bytes_before": (source.path / "tokenizer.json").stat().st_size,
                "tokenizer_bytes_after": (out / "tokenizer.json").stat().st_size,
                # In a fresh process that loads tokenizer and table; the record's timings have the whole model.
                **_measure_loading(source.path, "before"),
                **_measure_loading(out, "after"),
            },
        )

    def _corpora(self, context: StepContext, source: Path) -> list[_Corpus]:
        if not self.corpus:
            texts = context.need(CalibrationTexts)  # they have their prompts
            return [_Corpus("the recipe's calibration texts", lambda: texts, ("",), len(texts))]
        prompts = describe(source).prompts
        return [
            _Corpus(name, partial(read_corpus, path), tuple(dict.fromkeys(("", prompts.query, prompts.document))), self.texts_max)
            for name, path in self.files(context.need(RecipeFiles)).items()
        ]

    def _check_known(self, name: str, counts: NDArray[np.int64], pieces: Pieces, where: Path) -> None:
        if not counts.sum():
            raise StepError(f"{name}: holds no text, so no piece would be kept; name texts in the languages to be served")
        unknown = 0 if pieces.unknown is None else counts[pieces.unknown] / counts.sum()
        if unknown > self.unknown_max:
            raise StepError(
                f"{name}: {unknown:.1%} of its tokens are unknown to {where / 'tokenizer.json'}, unknown_max is "
                f"{self.unknown_max:.1%}: the model does not know its language, or it is not text; give other texts or another base"
            )

    def _check_coverage(self, tokenizer: Tokenizer, context: StepContext, kept: NDArray[np.int64], rows: int) -> float | None:
        """The share of the calibration tokens whose piece is kept; None where these texts are the corpus."""
        texts = context.get(CalibrationTexts)
        if not self.corpus or not texts:
            return None
        counts, _ = _count(tokenizer, texts, rows)
        coverage = float(counts[kept].sum() / max(counts.sum(), 1))
        if coverage < self.coverage_min:
            raise StepError(
                f"{', '.join(map(str, self.corpus))}: hold the pieces of {coverage:.1%} of the tokens in the recipe's calibration "
                f"texts, coverage_min is {self.coverage_min:.1%}: they are in another language, on another subject or too few; add "
                "texts like those to be served"
            )
        return coverage


def _whole_texts(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _find_table(spans: Mapping[str, TensorSpan], path: Path, vocabulary: int, highest: int) -> tuple[str, TensorSpan]:
    tables = [name for name in spans if name.endswith(TABLE)]
    if len(tables) != 1:
        raise StepError(f"{path}: {len(tables)} tensors are named ...{TABLE}, expected one; download the model again")
    span = spans[tables[0]]
    if span.shape[0] != vocabulary or highest >= vocabulary:
        raise StepError(
            f"{path}: {tables[0]} has {span.shape[0]} rows, config.json says {vocabulary} and the tokenizer's highest id is {highest}; "
            "download the model again"
        )
    return tables[0], span


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_TEXTS)):
        yield batch


def _count(tokenizer: Tokenizer, texts: Iterable[str], rows: int) -> tuple[NDArray[np.int64], int]:
    """How often each id occurs, without special tokens, and the number of texts."""
    import numpy as np

    counts, n_texts = np.zeros(rows, dtype=np.int64), 0
    for batch in _batches(texts):
        n_texts += len(batch)
        ids = [row.ids for row in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        counts += np.bincount(np.fromiter(chain.from_iterable(ids), dtype=np.int64), minlength=rows)
    return counts, n_texts


def _check_same(before: Tokenizer, after: Tokenizer, texts: Iterable[str], new_ids: Mapping[int, int], name: str) -> None:
    """Refuse a text that the two tokenize differently."""
    for batch in _batches(texts):
        for text, old, new in zip(batch, before.encode_batch_fast(batch), after.encode_batch_fast(batch), strict=True):
            if [new_ids.get(index) for index in old.ids] != new.ids:
                raise StepError(
                    f"{name}: {text[:PROBLEM_CHARACTERS]!r} is tokenized differently with the remaining pieces, which should not "
                    "happen with a WordPiece or Unigram tokenizer; remove the step, and report the tokenizer"
                )


def serve_loading(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The process of `_measure_loading`."""
    import numpy as np
    import psutil
    import tokenizers  # noqa: F401  # so that its import is not measured

    from optbench.model.safetensors import read_header
    from optbench.model.tokenizer import load_tokenizer

    yield
    folder, process = Path(payload["folder"]), psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    tokenizer = load_tokenizer(folder)
    main_file = folder / Kind.CHECKPOINT.main_file
    span = next(span for name, span in read_header(main_file).items() if name.endswith(TABLE))
    table = np.fromfile(main_file, dtype=np.uint8, count=span.size_bytes, offset=span.offset)
    seconds = time.perf_counter() - start
    yield {"load_ms": 1e3 * seconds, "rss_bytes": process.memory_info().rss - before, "held": [tokenizer.get_vocab_size(), table.size]}


def _measure_loading(folder: Path, when: str) -> dict[str, float]:
    from optbench.machine.worker import Worker

    with Worker(serve_loading, {"folder": str(folder)}) as worker:
        answer = worker.request({}, lambda message, share: None)
    return {f"load_ms_{when}": round(answer["load_ms"], 1), f"rss_bytes_{when}": answer["rss_bytes"]}
