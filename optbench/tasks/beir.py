"""Retrieval tasks in the BEIR folder layout, plain or gzipped.

    corpus.jsonl[.gz]         {"_id", "title", "text"} a line
    queries.jsonl[.gz]        {"_id", "text"} a line
    qrels/<split>.tsv[.gz]    query-id, corpus-id, score, with a header line

Source: Thakur et al. 2021, "BEIR", arXiv:2104.08663.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from optbench.errors import TaskError
from optbench.tasks.base import LINE_CHARACTERS_MAX, BaseTask, CalibrationTexts, Gain, Ranking, RetrievalData, open_lines, spare_texts
from optbench.tasks.spool import keep_texts

__all__ = ["Beir"]

# 2**30 - 1 is the largest exponential gain that trec_eval's int holds.
GRADE_MAX = 30


class Beir(BaseTask):
    """A retrieval task in the BEIR layout."""

    task: Literal["beir"] = "beir"
    path: Path = Field(description="The folder that holds corpus.jsonl, queries.jsonl and qrels/.")
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Which qrels file judges.")
    text: Literal["title", "text", "title text"] = Field(default="title text", description="The fields that make up a document's text.")
    ranking: Ranking = Field(default="full", description="Rank the judged documents of each query, the full corpus, or both.")
    gain: Gain = Field(default="linear", description="nDCG's worth of a grade g: g as BEIR has it, or 2**g - 1.")
    relevant_from: int = Field(default=1, ge=1, le=GRADE_MAX, description="Lowest grade that recall and MRR count as relevant.")
    language: str = Field(default="und", pattern=r"^[a-z]{2,3}$", description="ISO 639 code of the texts; und for unknown.")

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """The options that fit a folder's test judgments.

        Where some grade is 0, judges looked at whole pools, as product search does: titles, condensed lists, and
        exponential gain for graded ones. Where only relevant documents are listed, as in most of BEIR: its own defaults.

        Raises:
            TaskError: qrels/test.tsv is missing or broken.
        """
        task = cls(path=path)
        grades = {grade for judged in task._judgments().values() for grade in judged.values()}
        if 0 not in grades:
            return task
        return cls(path=path, text="title", ranking="judged", gain="exponential" if max(grades) > 1 else "linear")

    @property
    def name(self) -> str:
        """`beir:` and the folder's name."""
        return f"beir:{self.path.resolve().name}"

    def load(self) -> RetrievalData:
        """Read corpus, queries and judgments; judgments of unknown queries or documents are errors.

        Negative grades, which some TREC collections give to spam, count as 0. Documents without any text in the chosen
        fields are left out unless they are judged, which is an error.
        """
        all_queries = {record["_id"]: record["text"] for record in _read_records(self.path, "queries", ("_id", "text"))}
        documents = keep_texts((document, text) for document, text in self._documents() if text)
        relevance = self._judgments()
        qrels = self.path / "qrels" / f"{self.split}.tsv"
        for query, judged in relevance.items():
            if query not in all_queries:
                raise TaskError(f"{qrels}: judges query {query!r}, which queries.jsonl lacks; add it, or name another split")
            missing = next((document for document in judged if document not in documents), None)
            if missing is not None:
                raise TaskError(
                    f"{qrels}: judges document {missing!r} for query {query!r}, but corpus.jsonl has no text for it in {self.text!r}"
                )
        return RetrievalData(
            name=self.name,
            language=self.language,
            queries={query: all_queries[query] for query in relevance},
            documents=documents,
            relevance=relevance,
            gain=self.gain,
            ranking=self.ranking,
            relevant_from=self.relevant_from,
        )

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Unjudged documents, and queries that this split does not ask.

        Where the folder has none of the latter, beginnings of unjudged documents stand in, as long as real queries are.
        """
        data = self.load()
        others = (record["text"] for record in _read_records(self.path, "queries", ("_id", "text")) if record["_id"] not in data.queries)
        return spare_texts(data, n, seed, f"{self.path}, split {self.split!r}", others)

    def _documents(self) -> Iterator[tuple[str, str]]:
        fields = self.text.split()
        for record in _read_records(self.path, "corpus", ("_id",)):
            yield record["_id"], " ".join(part for part in (str(record.get(name) or "").strip() for name in fields) if part)

    def _judgments(self) -> dict[str, dict[str, int]]:
        path = self.path / "qrels" / f"{self.split}.tsv"
        if not path.is_file() and path.with_suffix(".tsv.gz").is_file():
            path = path.with_suffix(".tsv.gz")
        try:
            with open_lines(path) as file:
                lines = file.read().splitlines()
        except UnicodeDecodeError as error:
            raise TaskError(f"{path}: not UTF-8 at byte {error.start}; tab-separated query-id, corpus-id, score wanted") from error
        except (OSError, EOFError, zlib.error) as error:
            found = ", ".join(sorted({file.name.partition(".tsv")[0] for file in (self.path / "qrels").glob("*.tsv*")})) or "none"
            said = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise TaskError(f"{path}: {said}; splits that are there: {found}") from error
        relevance: dict[str, dict[str, int]] = {}
        for number, line in enumerate(lines, 1):
            cells = line.split("\t")
            if number == 1 and cells[-1].strip() == "score":
                continue
            if not line.strip():
                continue
            try:
                query, document, grade = cells[0], cells[1], int(cells[2])
            except (IndexError, ValueError) as error:
                raise TaskError(f"{path}:{number}: found {line!r}; query-id, corpus-id and a whole score, tab-separated, wanted") from error
            if len(cells) != 3 or grade > GRADE_MAX:
                raise TaskError(f"{path}:{number}: found {line!r}; three cells and a score of at most {GRADE_MAX} wanted")
            relevance.setdefault(query, {})[document] = max(grade, 0)
        if not relevance:
            raise TaskError(f"{path}: holds no judgments; query-id, corpus-id and score a line wanted")
        return relevance


def _read_records(folder: Path, stem: str, wanted: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The objects of `<stem>.jsonl` or `<stem>.jsonl.gz`, one a line, each with string values for the `wanted` keys."""
    path = next((path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()), None)
    if path is None:
        raise TaskError(f"{folder}: has neither {stem}.jsonl nor {stem}.jsonl.gz; a BEIR folder holds corpus, queries and qrels/")
    seen: set[str] = set()
    number = 0
    try:
        with open_lines(path) as file:
            while line := file.readline(LINE_CHARACTERS_MAX):
                number += 1
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in wanted):
                    raise TaskError(f"{path}:{number}: found {line.strip()[:80]!r}; an object with text for {' and '.join(wanted)} wanted")
                if record["_id"] in seen:
                    raise TaskError(f"{path}:{number}: _id {record['_id']!r} is there twice; make the ids unique")
                seen.add(record["_id"])
                yield record
    except ValueError as error:  # broken JSON or UTF-8
        raise TaskError(f"{path}:{number}: {error}; one JSON object a line wanted") from error
    except (OSError, EOFError, zlib.error) as error:  # gzip says a bad or cut file by these
        raise TaskError(f"{path}:{number}: cannot be read: {error}; fetch the file anew") from error
