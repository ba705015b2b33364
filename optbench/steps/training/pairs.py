"""Labeled pairs to fine-tune on: which documents answer which queries, without the tasks' test queries."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.errors import StepError, TaskError
from optbench.tasks import JudgedTexts
from optbench.tasks.beir import Beir
from optbench.tasks.files import TABLE_SUFFIXES, check_text, find_table, read_objects, suffix_of
from optbench.tasks.qrels import find_judgments

__all__ = ["Pairs", "check_no_test_query", "pair_files", "read_pairs"]

EXPECTED = 'one JSON object per line with "anchor" (or "query"), "positive" and, optionally, "negative" (a text or a list of texts)'


@dataclass(frozen=True)
class Pairs:
    """One data set.

    Attributes:
        rows: (anchor, positive), one for each positive of an anchor.
        negatives: by anchor, documents that were judged not to answer it.
        documents: what hard negatives are mined from, positives included.
    """

    name: str
    rows: Sequence[tuple[str, str]]
    negatives: Mapping[str, Sequence[str]]
    documents: Sequence[str]

    def split(self, share: float, seed: int) -> tuple["Pairs", "Pairs"]:
        """A part to train on, and a held-out part with `share` of the anchors, at least one."""
        anchors = list(dict.fromkeys(anchor for anchor, _ in self.rows))
        random.Random(seed).shuffle(anchors)  # noqa: S311  # a draw, not a secret
        held_out = set(anchors[: max(1, int(share * len(anchors)))])
        parts = [[row for row in self.rows if (row[0] in held_out) is side] for side in (False, True)]
        return Pairs(self.name, parts[0], self.negatives, self.documents), Pairs(self.name, parts[1], self.negatives, self.documents)


def pair_files(path: Path, split: str) -> dict[str, Path]:
    """The files that `read_pairs` reads, by name.

    Raises:
        TaskError: one is missing, or a file of another type.
    """
    if path.is_dir():
        tables = {stem: find_table(path, stem) for stem in ("corpus", "queries")}
        for stem, table in tables.items():
            if table is None:
                raise TaskError(f"{path}: has no {stem} file; a BEIR folder has corpus, queries and qrels/")
        files = [*(table for table in tables.values() if table is not None), find_judgments(path, split)]
        return {file.name: file for file in files}
    if not path.is_file():
        raise TaskError(f"{path}: no such file or folder; its path is relative to the recipe; expected {EXPECTED}")
    if suffix_of(path) not in TABLE_SUFFIXES:
        raise TaskError(f"{path}: a {path.suffix or 'extensionless'} file; expected {EXPECTED}")
    return {path.name: path}


def read_pairs(path: Path, split: str, positive_from: int) -> Pairs:
    """Read a BEIR folder's judgments in `qrels/<split>.tsv`, or a `.jsonl[.gz]` file of anchor, positive and optionally negatives.

    `positive_from` is the lowest grade that answers a query; documents of grade 0 are negatives, those in between are neither.

    Raises:
        TaskError: an incomplete folder.
        StepError: a line that is not a triple, or a data set without positives.
    """
    pairs = _read_folder(path, split, positive_from) if path.is_dir() else _read_triples(path)
    if not pairs.rows:
        raise StepError(f"{path}: has no positive, so there is nothing to learn; expected a document that answers each query")
    if len({anchor for anchor, _ in pairs.rows}) < 2:
        raise StepError(f"{path}: has only one query; each query is contrasted with the documents of others: give more queries")
    return pairs


def _read_folder(path: Path, split: str, positive_from: int) -> Pairs:
    data = Beir(path=path, split=split).load()
    rows, negatives = [], {}
    for query, text in data.queries.items():
        judged = {data.documents[document]: grade for document, grade in data.relevance[query].items()}
        rows += [(text, document) for document, grade in judged.items() if grade >= positive_from]
        negatives[text] = [document for document, grade in judged.items() if grade == 0]
    return Pairs(path.name, rows, negatives, list(dict.fromkeys(data.documents.values())))


def _read_triples(path: Path) -> Pairs:
    rows: list[tuple[str, str]] = []
    negatives: dict[str, list[str]] = {}
    for where, record in read_objects(path):
        if not isinstance(record, dict):
            raise StepError(f"{where}: found {record!r:.80}; expected {EXPECTED}")
        anchor, positive = record.get("anchor", record.get("query")), record.get("positive")
        given = record.get("negative") or []
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(text, str) and text for text in (anchor, *given)):
            raise StepError(f"{where}: found {json.dumps(record)[:80]}; expected {EXPECTED}")
        for text in (anchor, positive, *given):
            check_text(str(text or ""), where)
        negatives.setdefault(str(anchor), []).extend(given)
        if positive:
            rows.append((str(anchor), str(positive)))
    documents = [*(positive for _, positive in rows), *(text for texts in negatives.values() for text in texts)]
    return Pairs(path.name.split(".")[0], list(dict.fromkeys(rows)), negatives, list(dict.fromkeys(documents)))


def check_no_test_query(pairs: Pairs, judged: JudgedTexts) -> None:
    """Refuse a task's query as an anchor or a positive; documents of one corpus may serve training and test."""
    for row in pairs.rows:
        for text in row:
            task = judged.find_query(text)
            if task is not None:
                raise StepError(
                    f"{pairs.name}: trains on {text[:120]!r}, a query of the test of {task}, so its results would mean nothing: split the "
                    "data by query, and name the part that is not tested"
                )
