"""Retrieval tasks in the BEIR folder layout.

    corpus.jsonl       {"_id", "title", "text"} on each line
    queries.jsonl      {"_id", "text"} on each line
    qrels/<split>.tsv  query-id, corpus-id, score, with or without a header line

Corpus and queries may also be .csv, .tsv or .parquet with these column names, and text files gzipped; `optbench.tasks.qrels` says what
judgments may look like.

Source: Thakur et al. 2021, "BEIR", arXiv:2104.08663.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import BaseTask, CalibrationTexts, Gain, Ranking, RetrievalData, spare_texts
from optbench.tasks.files import TABLE_SUFFIXES, check_text, find_table, read_objects
from optbench.tasks.qrels import GRADE_MAX, find_judgments, read_judgments
from optbench.tasks.spool import keep_texts

__all__ = ["Beir"]

# Below this share of queries with relevant and irrelevant documents judged, a few grades of 0 are not judged pools.
POOLED_SHARE_MIN = 0.5
ID_KEYS = ("_id", "id")


class Beir(BaseTask):
    """A retrieval task in the BEIR layout."""

    task: Literal["beir"] = "beir"
    path: Path = Field(
        description="The folder with corpus.jsonl, queries.jsonl and qrels/. Corpus and queries may be .csv, .tsv or .parquet."
    )
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the qrels file, without .tsv.")
    text: Literal["title", "text", "title text"] = Field(default="title text", description="Fields that make up a document's text.")
    ranking: Ranking = Field(default="full", description="Rank the judged documents of each query, the full corpus, or both.")
    gain: Gain = Field(default="linear", description="nDCG gain of a grade g: linear, g, as in BEIR; exponential, 2**g - 1.")
    relevant_from: int = Field(default=1, ge=1, le=GRADE_MAX, description="Lowest grade that recall and MRR count as relevant.")
    language: str = Field(default="und", pattern=r"^[a-z]{2,3}$", description="ISO 639 code of the texts; und if unknown.")

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Choose ranking and gain from a folder's test judgments.

        If at least half of the queries have both relevant and irrelevant documents judged, whole pools were judged, as in product search:
        each query's judged documents are ranked, with exponential gain if grades exceed 1. Otherwise irrelevant documents are not listed,
        as in most of BEIR: the full corpus is ranked. `RetrievalData.describe` states the choice and its reason.

        Raises:
            TaskError: the judgments are missing or malformed.
        """
        judgments = read_judgments(find_judgments(path, "test"))
        mixed = sum(0 in judged.values() and any(judged.values()) for judged in judgments.values())
        if mixed < POOLED_SHARE_MIN * len(judgments):
            return cls(path=path)
        graded = max(grade for judged in judgments.values() for grade in judged.values()) > 1
        return cls(path=path, ranking="judged", gain="exponential" if graded else "linear")

    @property
    def name(self) -> str:
        """`beir:` and the name of the folder."""
        return f"beir:{self.path.resolve().name}"

    def check_files(self) -> None:
        """Look for corpus, queries and the split's judgments; raises TaskError where one is missing."""
        for stem in ("corpus", "queries"):
            _find(self.path, stem)
        find_judgments(self.path, self.split)

    def load(self) -> RetrievalData:
        """Read corpus, queries and judgments.

        Documents and queries without text are left out, and their judgments with them; `notes` has their number.

        Raises:
            TaskError: a file is missing or malformed, a judged query or document is not there, or none has text.
        """
        self.check_files()
        relevance = read_judgments(find_judgments(self.path, self.split))
        queries = dict(_read_texts(_find(self.path, "queries"), ("text",)))
        documents, blank, notes = self._documents({document for judged in relevance.values() for document in judged})
        self._check_known(relevance, queries, blank, documents)
        silent = sum(not queries[query] for query in relevance)
        if silent:
            notes.append(f"queries without text left out: {silent:,}")
        kept = {query: {name: grade for name, grade in judged.items() if name not in blank} for query, judged in relevance.items()}
        kept = {query: judged for query, judged in kept.items() if judged and queries[query]}
        if not kept:
            raise TaskError(f"{self.path}: no judged query and document have text; expected text in corpus and queries")
        return RetrievalData(
            name=self.name,
            language=self.language,
            queries={query: queries[query] for query in kept},
            documents=documents,
            relevance=kept,
            gain=self.gain,
            ranking=self.ranking,
            relevant_from=self.relevant_from,
            notes=tuple(notes),
        )

    def _documents(self, judged: set[str]) -> tuple[Mapping[str, str], set[str], list[str]]:
        """The texts by id, the judged ids without text, and a note of those left out."""
        path = _find(self.path, "corpus")
        blank: set[str] = set()
        n_blank = 0

        def with_text() -> Iterator[tuple[str, str]]:
            nonlocal n_blank
            for document, text in _read_texts(path, self.text.split()):
                if text:
                    yield document, text
                else:
                    n_blank += 1
                    blank.update({document} & judged)

        documents = keep_texts(with_text())
        if not documents:
            raise TaskError(f"{path}: none of its {n_blank:,} documents has text in {self.text!r}; choose other fields (text)")
        return documents, blank, [f"documents without text left out: {n_blank:,} (judged: {len(blank):,})"] if n_blank else []

    def _check_known(
        self, relevance: Mapping[str, Mapping[str, int]], queries: Mapping[str, str], blank: set[str], documents: Mapping[str, str]
    ) -> None:
        where = find_judgments(self.path, self.split)
        for query, judged in relevance.items():
            if query not in queries:
                name = _find(self.path, "queries").name
                raise TaskError(f"{where}: judges query {query!r}, which is not in {name}; add it, or choose another split")
            missing = next((document for document in judged if document not in documents and document not in blank), None)
            if missing is not None:
                name = _find(self.path, "corpus").name
                raise TaskError(
                    f"{where}: judges document {missing!r} for query {query!r}, which is not in {name}; add it, or remove the judgment"
                )

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Draw unjudged documents, and queries of other splits.

        If there are no other queries, the first words of unjudged documents are used, cut to the length of real queries.
        """
        data = self.load()
        others = (text for query, text in _read_texts(_find(self.path, "queries"), ("text",)) if query not in data.queries)
        return spare_texts(data, n, seed, others)


def _find(folder: Path, stem: str) -> Path:
    path = find_table(folder, stem)
    if path is None:
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder; give a BEIR folder, with corpus, queries and qrels/")
        raise TaskError(f"{folder}: has no {stem} file ({', '.join(TABLE_SUFFIXES)}); a BEIR folder has corpus, queries and qrels/")
    return path


def _read_texts(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the id and the text of each row: these fields, joined by a space; an integer id becomes a string."""
    seen: set[str] = set()
    for where, row in read_objects(path):
        name = _id_of(row, where)
        if name in seen:
            raise TaskError(f"{where}: duplicate id {name!r}; make the ids unique")
        seen.add(name)
        yield name, check_text(" ".join(part for part in (_field(row, field, where) for field in fields) if part), where)


def _id_of(row: Any, where: str) -> str:
    if not isinstance(row, dict):
        raise TaskError(f"{where}: found {row!r:.80}; expected an object with _id and text")
    name = next((row[key] for key in ID_KEYS if row.get(key) is not None), None)
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise TaskError(f"{where}: found {row!r:.80}; expected an object with _id, a text or a whole number")
    return check_text(str(name), where)


def _field(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TaskError(f"{where}: {field} is {value!r:.80}; expected a text")
    return value.strip()
