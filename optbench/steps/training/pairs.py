"""Labelled pairs to fine-tune on: which documents answer which queries, with none of the queries that the tasks ask."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.errors import StepError
from optbench.tasks import Beir, JudgedTexts
from optbench.tasks.base import LINE_CHARACTERS_MAX, open_lines

__all__ = ["Pairs", "check_no_test_query", "pair_files", "read_pairs"]

WANTED = 'a JSON object a line with "anchor" (or "query"), "positive" and, perhaps, "negative" (a text or a list of texts)'


@dataclass(frozen=True)
class Pairs:
    """One data set.

    Attributes:
        name: of its file or folder.
        rows: (anchor, positive); an anchor stands once for each of its positives.
        negatives: by anchor, documents that a person judged not to answer it.
        documents: what hard negatives are mined from, the positives among them.
    """

    name: str
    rows: Sequence[tuple[str, str]]
    negatives: Mapping[str, Sequence[str]]
    documents: Sequence[str]

    def split(self, share: float, seed: int) -> tuple["Pairs", "Pairs"]:
        """A part to train on, and a part of `share` of the anchors (one at least) that is held out."""
        anchors = list(dict.fromkeys(anchor for anchor, _ in self.rows))
        random.Random(seed).shuffle(anchors)  # noqa: S311  # a draw, not a secret
        held_out = set(anchors[: max(1, int(share * len(anchors)))])
        parts = [[row for row in self.rows if (row[0] in held_out) is wanted] for wanted in (False, True)]
        return Pairs(self.name, parts[0], self.negatives, self.documents), Pairs(self.name, parts[1], self.negatives, self.documents)


def pair_files(path: Path, split: str) -> dict[str, Path]:
    """The files that `read_pairs` reads, by name; what is missing is left to it to say."""
    names = ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "queries.jsonl.gz", f"qrels/{split}.tsv")
    files = [path / name for name in names] if path.is_dir() else [path]
    return {file.name: file for file in files if file.is_file()}


def read_pairs(path: Path, split: str, positive_from: int) -> Pairs:
    """Read a BEIR folder's judgments, or a file of triples.

    Args:
        path: a BEIR folder, or a `.jsonl[.gz]` file of anchor, positive and perhaps negatives.
        split: whose judgments train: `qrels/<split>.tsv`.
        positive_from: the lowest grade that answers a query; documents of grade 0 are negatives, those between neither.

    Raises:
        TaskError: a folder that is not whole.
        StepError: a line that is no triple, or a data set without positives.
    """
    pairs = _read_folder(path, split, positive_from) if path.is_dir() else _read_triples(path)
    if not pairs.rows:
        raise StepError(f"{path}: has no positive, so there is nothing to learn; a document that answers its query is wanted for each")
    if len({anchor for anchor, _ in pairs.rows}) < 2:
        raise StepError(f"{path}: has one query only; other queries' documents are what a query is told apart from: give more")
    return pairs


def _read_folder(path: Path, split: str, positive_from: int) -> Pairs:
    form = Beir.from_folder(path) if (path / "qrels" / "test.tsv").is_file() else Beir(path=path)
    data = form.model_copy(update={"split": split}).load()
    rows, negatives = [], {}
    for query, text in data.queries.items():
        judged = {data.documents[document]: grade for document, grade in data.relevance[query].items()}
        rows += [(text, document) for document, grade in judged.items() if grade >= positive_from]
        negatives[text] = [document for document, grade in judged.items() if grade == 0]
    return Pairs(path.name, rows, negatives, list(dict.fromkeys(data.documents.values())))


def _read_triples(path: Path) -> Pairs:
    rows: list[tuple[str, str]] = []
    negatives: dict[str, list[str]] = {}
    for number, record in _read_objects(path):
        anchor, positive = record.get("anchor", record.get("query")), record.get("positive")
        given = record.get("negative", [])
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(text, str) and text for text in (anchor, *given)):
            raise StepError(f"{path}:{number}: found {json.dumps(record)[:80]}; {WANTED} is wanted")
        negatives.setdefault(str(anchor), []).extend(given)
        if positive:
            rows.append((str(anchor), str(positive)))
    documents = [*(positive for _, positive in rows), *(text for texts in negatives.values() for text in texts)]
    return Pairs(path.name.split(".")[0], list(dict.fromkeys(rows)), negatives, list(dict.fromkeys(documents)))


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with open_lines(path) as file:
            while line := file.readline(LINE_CHARACTERS_MAX):
                number += 1
                record = json.loads(line) if line.strip() else {}
                if not isinstance(record, dict):
                    raise StepError(f"{path}:{number}: found {line[:80]!r}; {WANTED} is wanted")
                if record:
                    yield number, record
    except (OSError, EOFError, ValueError, RecursionError) as error:  # zlib's own error is a child of none: gzip wraps it
        raise StepError(f"{path}:{number + 1}: cannot be read: {error}; {WANTED} is wanted") from error


def check_no_test_query(pairs: Pairs, judged: JudgedTexts) -> None:
    """Refuse what a task asks, as an anchor or as a positive; documents of one corpus may serve training and test.

    Raises:
        StepError: names the first.
    """
    for row in pairs.rows:
        for text in row:
            task = judged.find_query(text)
            if task is not None:
                raise StepError(
                    f"{pairs.name}: trains on {text[:120]!r}, which the test of {task} asks, so its figures would mean nothing: split the "
                    "data by query, and name the part that is not tested"
                )
