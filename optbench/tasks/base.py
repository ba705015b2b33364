"""What a task is: options that load texts with human judgments, and texts apart from them to calibrate on."""

import gzip
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TextIO

from pydantic import BaseModel, ConfigDict

from optbench.errors import TaskError

__all__ = [
    "LINE_CHARACTERS_MAX",
    "BaseTask",
    "CalibrationTexts",
    "Gain",
    "PairData",
    "Ranking",
    "RetrievalData",
    "draw",
    "open_lines",
    "read_text",
    "shorten_to_queries",
]

Gain = Literal["exponential", "linear"]
"""What a grade g is worth in nDCG: 2**g - 1, or g."""

Ranking = Literal["judged", "full", "both"]
"""What is ranked: each query's judged documents (a condensed list), the whole corpus, or both, the first of which judges."""

# A SQuAD or pair file is some megabytes; the bound keeps a hostile one out of memory.
FILE_BYTES_MAX = 512 * 1024 * 1024
# BEIR's longest documents stay far below; a longer line is no corpus, and reading it whole would fill memory.
LINE_CHARACTERS_MAX = 16 * 1024 * 1024


@dataclass(frozen=True)
class RetrievalData:
    """Queries, documents and graded judgments.

    Attributes:
        name: `beir:chorus`, `retail`.
        language: ISO 639-1, or `und` where unknown.
        synthetic: made up, not collected; said wherever its figures appear.
        queries: id to text, without any prompt.
        documents: id to text, without any prompt.
        relevance: query id to document id to grade (0 and up; a missing document is unjudged).
        gain: what a grade is worth in nDCG.
        ranking: what is ranked.
        relevant_from: the lowest grade that recall and reciprocal rank count as relevant.
        attribution: license and source, as its owners want them named.
    """

    name: str
    language: str
    queries: Mapping[str, str]
    documents: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]
    synthetic: bool = False
    gain: Gain = "exponential"
    ranking: Ranking = "full"
    relevant_from: int = 1
    attribution: str = ""

    @property
    def gains(self) -> Mapping[int, int]:
        """Every grade that occurs, to its worth in nDCG."""
        grades = {grade for judged in self.relevance.values() for grade in judged.values()}
        return {grade: 2**grade - 1 if self.gain == "exponential" else grade for grade in sorted(grades)}

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """The documents that are embedded, in the order that document vectors keep: all, or only the judged ones."""
        if self.ranking != "judged":
            return tuple(self.documents)
        judged = {document for query in self.rankable("judged") for document in self.relevance[query]}
        return tuple(document for document in self.documents if document in judged)

    def rankable(self, ranking: Literal["judged", "full"]) -> tuple[str, ...]:
        """The queries that a ranking can be right or wrong about, in order.

        A judged pool of one grade throughout has no wrong order, and a query without a relevant document no right one.
        """
        kept = []
        for query in self.queries:
            grades = self.relevance.get(query, {}).values()
            if any(grade > 0 for grade in grades) and (ranking == "full" or len(set(grades)) > 1):
                kept.append(query)
        return tuple(kept)


@dataclass(frozen=True)
class PairData:
    """Sentence pairs with human similarity scores.

    Attributes:
        name: `sts:stsb-en-test`.
        language: ISO 639-1, or `und` where unknown.
        first: a sentence a pair.
        second: the other sentence, in the same order.
        scores: the human score, in the same order; only its order counts.
        synthetic: made up, not collected.
        attribution: license and source.
    """

    name: str
    language: str
    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]
    synthetic: bool = False
    attribution: str = ""


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts that resemble the task's and share none with its test.

    Attributes:
        queries: without prompt.
        documents: without prompt.
        note: what they are, for the record.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    note: str = field(default="", compare=False)


class BaseTask(BaseModel, ABC):
    """A task's options. Subclasses add `task: Literal["name"]`, the tag of the union in `tasks/__init__.py`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def name(self) -> str:
        """How records and tables call it."""

    @abstractmethod
    def load(self) -> RetrievalData | PairData:
        """Read the task.

        Raises:
            TaskError: a file is missing or broken; says which line, what was found and what was wanted.
        """

    @abstractmethod
    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Draw at most `n` queries and `n` documents, none of which the test judges or asks.

        Raises:
            TaskError: the task has no texts to spare.
        """


def draw(texts: Iterable[str], n: int, seed: int, *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """Draw at most `n` distinct texts that are not among `without`; the same seed draws the same ones on any machine."""
    excluded = set(without)
    pool = [text for text in dict.fromkeys(texts) if text.strip() and text not in excluded]
    return tuple(random.Random(seed).sample(pool, min(n, len(pool))))  # noqa: S311  # a draw, not a secret


def shorten_to_queries(texts: Sequence[str], lengths: Sequence[int], n: int, seed: int, *, without: Iterable[str]) -> tuple[str, ...]:
    """Stand in for queries with the beginnings of documents, as many words long as real queries are.

    Args:
        texts: documents.
        lengths: word counts of the real queries; one is drawn for each text.
        n: how many at most.
        seed: of both draws.
        without: texts that must not come out, the test's queries.
    """
    generator = random.Random(seed)  # noqa: S311  # a draw, not a secret
    return draw((" ".join(text.split()[: generator.choice(lengths)]) for text in texts), n, seed, without=without)


def read_text(path: Path, wanted: str) -> str:
    """Read a whole small file.

    Raises:
        TaskError: missing, too large or not UTF-8; says what the file should be.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise TaskError(f"{path}: larger than {FILE_BYTES_MAX} bytes; {wanted} is wanted")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}; {wanted} is wanted") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 at byte {error.start}; {wanted} is wanted") from error


def open_lines(path: Path) -> TextIO:
    """Open a UTF-8 text file, gzipped where its name ends in .gz, to be read by the line."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
