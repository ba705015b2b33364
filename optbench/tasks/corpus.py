"""Corpora: texts without judgments, streamed row by row in little memory.

- *.txt: one text per line
- *.jsonl: on each line an object with "text" and optionally "title", or a string
- *.csv, *.tsv, *.parquet: a column "text" and optionally "title"
- a folder in BEIR layout: its corpus; queries belong to the test and are not read

All but Parquet may be gzipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optbench.errors import TaskError
from optbench.tasks.files import TABLE_SUFFIXES, check_text, find_table, read_lines, read_objects, suffix_of

__all__ = ["find_corpus", "read_corpus"]

EXPECTED = "a .txt file (one text per line), a .jsonl, .csv, .tsv or .parquet file (text, optionally title), or a BEIR folder"


def find_corpus(path: Path) -> Path:
    """Find the file with a corpus's texts.

    Raises:
        TaskError: there is none, or its type is not supported.
    """
    if path.is_dir():
        found = find_table(path, "corpus")
        if found is None:
            raise TaskError(f"{path}: a folder without corpus.jsonl; expected {EXPECTED}")
        return found
    if not path.is_file():
        raise TaskError(f"{path}: no such file or folder; a corpus's path is relative to its recipe; expected {EXPECTED}")
    if suffix_of(path) not in (".txt", ".txt.gz", *TABLE_SUFFIXES):
        raise TaskError(f"{path}: a {path.suffix or 'extensionless'} file; expected {EXPECTED}")
    return path


def read_corpus(path: Path) -> Iterator[str]:
    """Yield the texts of a corpus in order, without blank ones.

    Raises:
        TaskError: the file is missing, truncated, not UTF-8, or has a malformed row; names the line.
    """
    file = find_corpus(path)
    if suffix_of(file) in (".txt", ".txt.gz"):
        rows: Iterator[tuple[str, Any]] = ((f"{file}:{number}", line.strip()) for number, line in read_lines(file))
    else:
        rows = read_objects(file)
    for where, row in rows:
        text = _text_of(row, where)
        if text:
            yield check_text(text, where)


def _text_of(row: Any, where: str) -> str:
    parts: list[Any] = [row] if isinstance(row, str) else [None]
    if isinstance(row, dict) and "text" in row:
        parts = [row.get("title") or "", row["text"] or ""]
    if not all(isinstance(part, str) for part in parts):
        raise TaskError(f"{where}: found {json.dumps(row, default=str)[:80]}; expected an object with text, or a JSON string")
    return " ".join(part.strip() for part in parts if part.strip())
