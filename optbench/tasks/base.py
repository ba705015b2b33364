"""What a task is: options that load texts with human judgments, and texts apart from them to calibrate on."""

import gzip
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TextIO

from pydantic import Field

from optbench.errors import TaskError
from optbench.machine.frozen import Frozen

__all__ = [
    "LINE_CHARACTERS_MAX",
    "BaseTask",
    "CalibrationTexts",
    "Gain",
    "PairData",
    "Ranking",
    "RetrievalData",
    "calibrate_on_parts",
    "draw",
    "files_of",
    "load_tasks",
    "normalize_text",
    "open_lines",
    "read_text",
    "shorten_to_queries",
    "spare_texts",
]

Gain = Literal["exponential", "linear"]
"""What a grade g is worth in nDCG: 2**g - 1, or g."""

Ranking = Literal["judged", "full", "both"]
"""What is ranked: each query's judged documents (a condensed list), the whole corpus, or both, the first of which judges."""

# A SQuAD or pair file is some megabytes; the bound keeps a hostile one out of memory.
FILE_BYTES_MAX = 512 * 1024 * 1024
# BEIR's longest documents stay far below; a longer line is no corpus, and reading it whole would fill memory.
LINE_CHARACTERS_MAX = 16 * 1024 * 1024
# Calibration draws some hundred texts: out of so many documents at most.
SAMPLED_DOCUMENTS = 200_000


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
        without_itself: a document whose id is the query's own is not among its results, as where arguments answer arguments.
        weight: of this task in the mean over tasks.
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
    without_itself: bool = False
    weight: float = 1.0
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
        weight: of this task in the mean over tasks.
        attribution: license and source.
    """

    name: str
    language: str
    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]
    synthetic: bool = False
    weight: float = 1.0
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


class BaseTask(Frozen, ABC):
    """A task's options. Subclasses add `task: Literal["name"]`, the tag of the union in `tasks/__init__.py`."""

    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Its weight in the mean over tasks; its languages share it equally."
    )

    @property
    @abstractmethod
    def name(self) -> str:
        """How records and tables call it."""

    def parts(self) -> tuple["BaseTask", ...]:
        """The task language by language, each a task that loads by itself; the task alone where it is in one language.

        Raises:
            TaskError: nothing is there.
        """
        return (self,)

    @abstractmethod
    def load(self) -> RetrievalData | PairData:
        """Read the task.

        Raises:
            TaskError: a file is missing or broken; says which line, what was found and what was wanted. Or the task has several
                parts, each to be loaded by itself.
        """

    @abstractmethod
    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Draw at most `n` queries and `n` documents, none of which the test judges or asks.

        Raises:
            TaskError: the task has no texts to spare.
        """


def load_tasks(tasks: Iterable[BaseTask]) -> list[RetrievalData | PairData]:
    """Read tasks, each language of a task by itself; a task that is named twice is read once, with its first weight.

    Raises:
        TaskError: as `BaseTask.load`; or two different tasks have one name, so that their results could not be told apart.
    """
    loaded: dict[str, RetrievalData | PairData] = {}
    read: dict[str, BaseTask] = {}
    for task in tasks:
        parts = task.parts()
        for part in parts:
            options = part.model_copy(update={"weight": 1.0})
            if read.get(part.name) == options:
                continue
            if part.name in read:
                raise TaskError(f"two different tasks are called {part.name}; rename the file or folder of one, or leave one out")
            read[part.name] = options
            loaded[part.name] = replace(part.load(), weight=task.weight / len(parts))
    return list(loaded.values())


def calibrate_on_parts(parts: Sequence[BaseTask], n: int, seed: int) -> CalibrationTexts:
    """Draw from every part in turn, so that each language has its share of the `n` queries and `n` documents.

    Raises:
        TaskError: a part has no texts to spare.
    """
    drawn = [part.calibration_texts(-(-n // len(parts)), seed) for part in parts]

    def in_turn(columns: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return tuple(text for row in zip_longest(*columns) for text in row if text is not None)[:n]

    return CalibrationTexts(
        in_turn([each.queries for each in drawn]), in_turn([each.documents for each in drawn]), "; ".join(each.note for each in drawn)
    )


def spare_texts(data: RetrievalData, n: int, seed: int, where: str, queries: Iterable[str] = ()) -> CalibrationTexts:
    """Unjudged documents, and queries that the test does not ask.

    Args:
        data: the test.
        n: how many of each at most.
        seed: of the draw.
        where: the task, for messages.
        queries: of another split; where none is left, beginnings of unjudged documents stand in, as long as real queries are.

    Raises:
        TaskError: every document is judged.
    """
    judged = {normalize_text(data.documents[document]) for grades in data.relevance.values() for document in grades}
    asked = set(data.queries.values())
    # Every text of a corpus larger than memory would not fit: a sample of ids stands for it.
    names = list(data.documents)
    sampled = random.Random(seed).sample(names, min(len(names), SAMPLED_DOCUMENTS))  # noqa: S311  # a draw, not a secret
    chosen = set(sampled)
    unjudged = [text for text in (data.documents[name] for name in names if name in chosen) if normalize_text(text) not in judged]
    documents = draw(unjudged, n, seed, without=asked)
    if not documents:
        raise TaskError(f"{where}: every document is judged, so none is left to calibrate on; name another task")
    note = f"{len(documents)} unjudged documents of {data.name}; "
    spare = draw(queries, n, seed, without=asked)
    if spare:
        return CalibrationTexts(spare, documents, f"{note}{len(spare)} queries that the test does not ask")
    lengths = [len(query.split()) for query in data.queries.values()]
    spare = shorten_to_queries(unjudged, lengths, n, seed, without=asked | judged)
    return CalibrationTexts(spare, documents, f"{note}no queries to spare: {len(spare)} beginnings of unjudged documents instead")


def normalize_text(text: str) -> str:
    """Case and white space apart, two texts are the same text."""
    return " ".join(text.casefold().split())


def draw(texts: Iterable[str], n: int, seed: int, *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """Draw at most `n` distinct texts that are not among `without`, in whatever case; a seed draws the same ones on any machine."""
    excluded = {normalize_text(text) for text in without}
    pool = [text for text in dict.fromkeys(texts) if text.strip() and normalize_text(text) not in excluded]
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


def files_of(path: Path, suffix: str, wanted: str) -> tuple[Path, ...]:
    """A folder's files of that suffix in order of name; the path alone where it is no folder.

    Raises:
        TaskError: the folder has none.
    """
    if not path.is_dir():
        return (path,)
    found = tuple(sorted(file for file in path.iterdir() if file.suffix == suffix and file.is_file()))
    if not found:
        raise TaskError(f"{path}: holds no {suffix} file; {wanted} is wanted")
    return found


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
