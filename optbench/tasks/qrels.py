"""Relevance judgments: query, document and grade on each line, with or without a header, and TREC's four columns."""

import math
from collections.abc import Sequence
from pathlib import Path

from optbench.errors import TaskError
from optbench.tasks.files import check_text, column_name, find_columns, read_cells

__all__ = ["EXPECTED", "GRADE_MAX", "find_judgments", "has_judgments", "read_judgments"]

SUFFIXES = (".tsv", ".tsv.gz", ".csv", ".csv.gz", ".txt", ".qrels", ".parquet")
"""The files of judgments, in the order in which `find_judgments` looks for them."""
# 2**30 - 1 is the largest exponential gain that fits trec_eval's int.
GRADE_MAX = 30

EXPECTED = (
    f"query-id, corpus-id and a whole score of at most {GRADE_MAX}, tab-separated, on each line, "
    "or TREC's query, iteration, document and grade"
)

# As `column_name` gives them.
NAMES = {
    "query": frozenset({"queryid", "query", "qid", "topic", "topicid"}),
    "document": frozenset({"corpusid", "documentid", "document", "docid", "doc", "docno", "passageid", "pid", "productid", "itemid"}),
    "grade": frozenset({"score", "relevance", "label", "grade", "rel", "relevancy", "judgment", "judgement", "rating", "gain"}),
}


def has_judgments(folder: Path, split: str) -> bool:
    """Whether a folder holds judgments of a split."""
    return any((folder / "qrels" / f"{split}{suffix}").is_file() for suffix in SUFFIXES)


def find_judgments(folder: Path, split: str) -> Path:
    """The file with the judgments of a split, in a folder's `qrels/`.

    Raises:
        TaskError: there is none; lists the splits that are there.
    """
    found = next((path for suffix in SUFFIXES if (path := folder / "qrels" / f"{split}{suffix}").is_file()), None)
    if found is None:
        names = {file.name.removesuffix(suffix) for suffix in SUFFIXES for file in (folder / "qrels").glob(f"*{suffix}")}
        raise TaskError(f"{folder / 'qrels' / split}.tsv: no such file; available splits: {', '.join(sorted(names)) or 'none'}")
    return found


def read_judgments(path: Path) -> dict[str, dict[str, int]]:
    """Read grades by query id and document id; a later line of the same two ids replaces an earlier one.

    Negative grades, which some TREC collections give to spam, count as 0.

    Raises:
        TaskError: the file cannot be read, or a line is malformed; names the line.
    """
    relevance: dict[str, dict[str, int]] = {}
    columns: dict[str, int] | None = None
    width = 0
    for where, cells in read_cells(path):
        if columns is None:
            columns, width = _columns(cells, where), len(cells)
            if _is_header(cells):
                continue
        if len(cells) != width:
            raise TaskError(f"{where}: found {cells!r:.120}; expected {width} cells as in the first line: {EXPECTED}")
        query, document = (check_text(cells[columns[key]], where) for key in ("query", "document"))
        grade = _grade(cells[columns["grade"]])
        if grade is None or not query or not document:
            raise TaskError(f"{where}: found {cells!r:.120}; expected {EXPECTED}")
        relevance.setdefault(query, {})[document] = max(grade, 0)
    if not relevance:
        raise TaskError(f"{path}: contains no judgments; expected {EXPECTED}")
    return relevance


def _is_header(cells: Sequence[str]) -> bool:
    spellings = frozenset().union(*NAMES.values())
    return sum(column_name(cell) in spellings for cell in cells) > 1


def _columns(cells: Sequence[str], where: str) -> dict[str, int]:
    if _is_header(cells):
        found = find_columns(cells, NAMES)
        if found is None:
            raise TaskError(f"{where}: the header {', '.join(cells)[:120]!r} does not name query, document and grade; expected {EXPECTED}")
        return found
    if len(cells) not in (3, 4):
        raise TaskError(f"{where}: found {cells!r:.120}; expected {EXPECTED}")
    return {"query": 0, "document": len(cells) - 2, "grade": len(cells) - 1}


def _grade(cell: str) -> int | None:
    """A whole grade, also written as 1.0; None for anything else."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value.is_integer() and value <= GRADE_MAX else None
