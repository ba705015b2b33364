"""The base class of tasks, the data that they load, and what they share in reading and drawing texts."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from optbench.errors import TaskError
from optbench.machine.frozen import Frozen

__all__ = [
    "BaseTask",
    "CalibrationTexts",
    "Gain",
    "PairData",
    "Ranking",
    "RetrievalData",
    "calibrate_on_parts",
    "draw",
    "load_tasks",
    "normalize_text",
    "shorten_to_queries",
    "spare_texts",
]

Gain = Literal["exponential", "linear"]
"""The nDCG gain of a grade g: 2**g - 1, or g."""

Ranking = Literal["judged", "full", "both"]
"""What is ranked: each query's judged documents (a condensed list), the whole corpus, or both; with both, the verdict uses the first."""

# Calibration draws a few hundred texts, from a sample of this many documents.
SAMPLED_DOCUMENTS = 200_000


@dataclass(frozen=True)
class RetrievalData:
    """Queries, documents and graded judgments.

    Attributes:
        language: ISO 639-1 code, or `und` if unknown.
        queries: id to text, without prompt.
        documents: id to text, without prompt.
        relevance: query id to document id to grade, 0 and up; a missing document is unjudged.
        synthetic: generated, not collected; stated wherever its figures appear.
        relevant_from: the lowest grade that recall and reciprocal rank count as relevant.
        without_itself: exclude the document that has the query's own id from its results (MTEB's `ignore_identical_ids`).
        weight: weight in the mean over tasks.
        attribution: license and source, in the owners' words.
        notes: what was left out when it was read, for the terminal and the record.
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
    notes: tuple[str, ...] = ()

    @property
    def gains(self) -> Mapping[int, int]:
        """Each grade that occurs, with its nDCG gain."""
        grades = {grade for judged in self.relevance.values() for grade in judged.values()}
        return {grade: 2**grade - 1 if self.gain == "exponential" else grade for grade in sorted(grades)}

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Ids of the documents to embed, in the order of their vectors: all, or only the judged ones."""
        if self.ranking != "judged":
            return tuple(self.documents)
        judged = {document for query in self.rankable("judged") for document in self.relevance[query]}
        return tuple(document for document in self.documents if document in judged)

    def rankable(self, ranking: Literal["judged", "full"]) -> tuple[str, ...]:
        """Ids of the queries that a ranking can be judged on, in order.

        Queries without a relevant document are left out; in a judged ranking, so are those whose documents all have the same grade.
        """
        kept = []
        for query in self.queries:
            grades = self.relevance.get(query, {}).values()
            if any(grade > 0 for grade in grades) and (ranking == "full" or len(set(grades)) > 1):
                kept.append(query)
        return tuple(kept)

    def describe(self) -> str:
        """Its size, and what is ranked and why, in one line."""
        size = f"{self.name}: {len(self.queries):,} queries, {len(self.documents):,} documents"
        if self.ranking == "full":
            return "; ".join([f"{size}; ranks the full corpus", *self.notes])
        mixed = len(self.rankable("judged"))
        pools = f"{mixed:,} of {len(self.queries):,} queries have relevant and irrelevant documents judged"
        what = "each query's judged documents" if self.ranking == "judged" else "each query's judged documents, and the full corpus"
        return "; ".join([f"{size}; ranks {what}: {pools}", *self.notes])


@dataclass(frozen=True)
class PairData:
    """Sentence pairs with human similarity scores, of which only the order counts; the other attributes are as in `RetrievalData`."""

    name: str
    language: str
    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]
    synthetic: bool = False
    weight: float = 1.0
    attribution: str = ""
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Its size, in one line."""
        return "; ".join([f"{self.name}: {len(self.first):,} pairs", *self.notes])


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts like the task's, without prompt, none of which is in its test. `note` says where they come from, for the record."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    note: str = field(default="", compare=False)


class BaseTask(Frozen, ABC):
    """A task's options. Subclasses narrow `task` to their name, as `task: Literal["beir"] = "beir"`."""

    if TYPE_CHECKING:
        task: str = ""  # for type checkers; a field here would change the order of every subclass's fields

    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Weight in the mean over tasks, shared equally by the task's languages."
    )

    @property
    @abstractmethod
    def name(self) -> str:
        """The task's name in records and tables."""

    def parts(self) -> tuple["BaseTask", ...]:
        """One task for each language; the task itself if it has only one.

        Raises:
            TaskError: the task has no files.
        """
        return (self,)

    @abstractmethod
    def load(self) -> RetrievalData | PairData:
        """Read the task.

        Raises:
            TaskError: a file is missing or malformed (names the line, what was found and what was expected), or the task has several
                parts, which must be loaded one by one.
        """

    @abstractmethod
    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Draw at most `n` queries and `n` documents that are not in the test; none of a kind of which every text is in the test.

        Raises:
            TaskError: as for `load`.
        """

    def check_files(self) -> None:
        """Look for the files that `load` reads, without reading them.

        Raises:
            TaskError: a file is missing, or a library that reads them.
        """


def load_tasks(tasks: Iterable[BaseTask]) -> list[RetrievalData | PairData]:
    """Load tasks, language by language. Duplicates are loaded once, with the weight of the first.

    Raises:
        TaskError: as for `BaseTask.load`, or two different tasks share a name, which would mix up their results.
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
                raise TaskError(f"two different tasks are called {part.name}; rename the file or folder of one, or remove one")
            read[part.name] = options
            loaded[part.name] = replace(part.load(), weight=task.weight / len(parts))
    return list(loaded.values())


def calibrate_on_parts(parts: Sequence[BaseTask], n: int, seed: int) -> CalibrationTexts:
    """Draw at most `n` queries and `n` documents, an equal share from each part.

    Raises:
        TaskError: a part cannot be read.
    """
    drawn = [part.calibration_texts(-(-n // len(parts)), seed) for part in parts]

    def in_turn(columns: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return tuple(text for row in zip_longest(*columns) for text in row if text is not None)[:n]

    return CalibrationTexts(
        in_turn([each.queries for each in drawn]), in_turn([each.documents for each in drawn]), "; ".join(each.note for each in drawn)
    )


def spare_texts(data: RetrievalData, n: int, seed: int, queries: Iterable[str] = ()) -> CalibrationTexts:
    """Draw at most `n` unjudged documents, and at most `n` of `queries`, those of other splits.

    Without such queries, the first words of unjudged documents are used, cut to the length of real queries.
    """
    judged = {normalize_text(data.documents[document]) for grades in data.relevance.values() for document in grades}
    asked = set(data.queries.values())
    # A corpus may be larger than memory: only a sample of its texts is read.
    names = list(data.documents)
    sampled = random.Random(seed).sample(names, min(len(names), SAMPLED_DOCUMENTS))  # noqa: S311  # sampling, not cryptography
    chosen = set(sampled)
    unjudged = [text for text in (data.documents[name] for name in names if name in chosen) if normalize_text(text) not in judged]
    documents = draw(unjudged, n, seed, without=asked)
    spare = draw(queries, n, seed, without=asked | judged)
    note = f"{len(documents)} unjudged documents of {data.name}" if documents else f"every document of {data.name} is judged"
    if spare or not documents:
        others = f"; {len(spare)} queries that are not in the test" if spare else ""
        return CalibrationTexts(spare, documents, note + others)
    lengths = [len(query.split()) for query in data.queries.values()]
    spare = shorten_to_queries(unjudged, lengths, n, seed, without=asked | judged)
    return CalibrationTexts(spare, documents, f"{note}; no queries outside the test: first words of {len(spare)} unjudged documents")


def normalize_text(text: str) -> str:
    """Fold case and white space, in which copies of a text may differ."""
    return " ".join(text.casefold().split())


def draw(texts: Iterable[str], n: int, seed: int, *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """Draw at most `n` distinct texts that are not in `without`, ignoring case; the same seed draws the same texts on any machine."""
    excluded = {normalize_text(text) for text in without}
    pool = [text for text in dict.fromkeys(texts) if text.strip() and normalize_text(text) not in excluded]
    return tuple(random.Random(seed).sample(pool, min(n, len(pool))))  # noqa: S311  # sampling, not cryptography


def shorten_to_queries(texts: Sequence[str], lengths: Sequence[int], n: int, seed: int, *, without: Iterable[str]) -> tuple[str, ...]:
    """Draw at most `n` substitutes for queries: the first words of documents, as many as a real query has (`lengths`)."""
    generator = random.Random(seed)  # noqa: S311  # sampling, not cryptography
    return draw((" ".join(text.split()[: generator.choice(lengths)]) for text in texts), n, seed, without=without)
