"""Retrieval tasks in the BEIR folder layout, plain or gzipped.

    corpus.jsonl[.gz]         {"_id", "title", "text"} on each line
    queries.jsonl[.gz]        {"_id", "text"} on each line
    qrels/<split>.tsv[.gz]    query-id, corpus-id, score, tab-separated, with a header line

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

# 2**30 - 1 is the largest exponential gain that fits trec_eval's int.
GRADE_MAX = 30

EXPECTED = f"query-id, corpus-id and a whole score of at most {GRADE_MAX}, tab-separated, on each line"


class Beir(BaseTask):
    """A retrieval task in the BEIR layout."""

    task: Literal["beir"] = "beir"
    path: Path = Field(description="The folder with corpus.jsonl, queries.jsonl and qrels/.")
    split: str = Field(default="test", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the qrels file, without .tsv.")
    text: Literal["title", "text", "title text"] = Field(default="title text", description="Fields that make up a document's text.")
    ranking: Ranking = Field(default="full", description="Rank the judged documents of each query, the full corpus, or both.")
    gain: Gain = Field(default="linear", description="nDCG gain of a grade g: linear, g, as in BEIR; exponential, 2**g - 1.")
    relevant_from: int = Field(default=1, ge=1, le=GRADE_MAX, description="Lowest grade that recall and MRR count as relevant.")
    language: str = Field(default="und", pattern=r"^[a-z]{2,3}$", description="ISO 639 code of the texts; und if unknown.")

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Choose the options from a folder's test judgments.

        A grade of 0 shows that whole pools were judged, as in product search: rank titles within each query's judged documents, with
        exponential gain if grades exceed 1. Otherwise, only relevant documents are listed, as in most of BEIR: keep the defaults.

        Raises:
            TaskError: qrels/test.tsv is missing or malformed.
        """
        task = cls(path=path)
        grades = {grade for judged in task._judgments().values() for grade in judged.values()}
        if 0 not in grades:
            return task
        return cls(path=path, text="title", ranking="judged", gain="exponential" if max(grades) > 1 else "linear")

    @property
    def name(self) -> str:
        """`beir:` and the name of the folder."""
        return f"beir:{self.path.resolve().name}"

    def load(self) -> RetrievalData:
        """Read corpus, queries and judgments.

        Negative grades, which some TREC collections give to spam, count as 0. Documents without text in the chosen fields are left out.

        Raises:
            TaskError: a file is missing or malformed, or a judged query or document has no text.
        """
        all_queries = {record["_id"]: record["text"] for record in _read_records(self.path, "queries", ("_id", "text"))}
        documents = keep_texts((document, text) for document, text in self._documents() if text)
        relevance = self._judgments()
        qrels = self.path / "qrels" / f"{self.split}.tsv"
        for query, judged in relevance.items():
            if query not in all_queries:
                raise TaskError(f"{qrels}: judges query {query!r}, which is not in queries.jsonl; add it, or choose another split")
            missing = next((document for document in judged if document not in documents), None)
            if missing is not None:
                raise TaskError(
                    f"{qrels}: judges document {missing!r} for query {query!r}, but corpus.jsonl has no text for it in {self.text!r}; "
                    "add it, or choose other fields (text)"
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
        """Draw unjudged documents, and queries of other splits.

        If there are no other queries, the first words of unjudged documents are used, cut to the length of real queries.
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
            raise TaskError(f"{path}: not UTF-8 at byte {error.start}; expected {EXPECTED}") from error
        except (OSError, EOFError, zlib.error) as error:
            found = ", ".join(sorted({file.name.partition(".tsv")[0] for file in (self.path / "qrels").glob("*.tsv*")})) or "none"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise TaskError(f"{path}: {reason}; available splits: {found}") from error
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
                raise TaskError(f"{path}:{number}: found {line!r}; expected {EXPECTED}") from error
            if len(cells) != 3 or grade > GRADE_MAX:
                raise TaskError(f"{path}:{number}: found {line!r}; expected {EXPECTED}")
            relevance.setdefault(query, {})[document] = max(grade, 0)
        if not relevance:
            raise TaskError(f"{path}: contains no judgments; expected {EXPECTED}")
        return relevance


def _read_records(folder: Path, stem: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the objects of `<stem>.jsonl` or `<stem>.jsonl.gz`, one per line, each with a string for every key of `keys`."""
    path = next((path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()), None)
    if path is None:
        raise TaskError(f"{folder}: has neither {stem}.jsonl nor {stem}.jsonl.gz; a BEIR folder has corpus, queries and qrels/")
    seen: set[str] = set()
    number = 0
    try:
        with open_lines(path) as file:
            while line := file.readline(LINE_CHARACTERS_MAX):
                number += 1
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in keys):
                    raise TaskError(f"{path}:{number}: found {line.strip()[:80]!r}; expected an object with {' and '.join(keys)}")
                if record["_id"] in seen:
                    raise TaskError(f"{path}:{number}: duplicate _id {record['_id']!r}; make the ids unique")
                seen.add(record["_id"])
                yield record
    except ValueError as error:  # malformed JSON or UTF-8
        raise TaskError(f"{path}:{number}: {error}; expected one JSON object on each line") from error
    except (OSError, EOFError, zlib.error) as error:  # what gzip raises for a damaged or truncated file
        raise TaskError(f"{path}:{number}: cannot be read: {error}; download the file again") from error
