"""Corpora: texts without judgments, streamed line by line in little memory.

- *.txt, *.txt.gz: one text per line
- *.jsonl, *.jsonl.gz: on each line an object with "text" and optionally "title", or a string
- a folder in BEIR layout: its corpus.jsonl or corpus.jsonl.gz; queries belong to the test and are not read
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optbench.errors import TaskError
from optbench.tasks.base import LINE_CHARACTERS_MAX, open_lines

__all__ = ["find_corpus", "read_corpus"]

EXPECTED = "a .txt file (one text per line) or .jsonl file (text, optionally title), plain or .gz, or a BEIR folder"


def find_corpus(path: Path) -> Path:
    """Find the file with a corpus's texts.

    Raises:
        TaskError: there is none, or its type is not supported.
    """
    if path.is_dir():
        found = next((path / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path / name).is_file()), None)
        if found is None:
            raise TaskError(f"{path}: a folder without corpus.jsonl; expected {EXPECTED}")
        return found
    if not path.is_file():
        raise TaskError(f"{path}: no such file or folder; a corpus's path is relative to its recipe; expected {EXPECTED}")
    if _kind(path) not in (".txt", ".jsonl"):
        raise TaskError(f"{path}: a {path.suffix or 'extensionless'} file; expected {EXPECTED}")
    return path


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def read_corpus(path: Path) -> Iterator[str]:
    """Yield the texts of a corpus in order, without blank ones.

    Raises:
        TaskError: the file is missing, truncated, not UTF-8, or has a malformed line; names the line.
    """
    file_path = find_corpus(path)
    as_json = _kind(file_path) == ".jsonl"
    number = 0
    try:
        with open_lines(file_path) as file:
            while line := file.readline(LINE_CHARACTERS_MAX):
                number += 1
                text = _text_of(json.loads(line), f"{file_path}:{number}") if as_json and line.strip() else line.strip()
                if text:
                    yield text
    except UnicodeDecodeError as error:  # files are decoded in blocks, so the line is unknown
        raise TaskError(f"{file_path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except ValueError as error:
        raise TaskError(f"{file_path}:{number}: not JSON: {error}; expected {EXPECTED}") from error
    except (OSError, EOFError, zlib.error, RecursionError) as error:  # gzip raises the first three for a damaged or truncated file
        raise TaskError(f"{file_path}:{number}: cannot be read: {error}; download the file again") from error


def _text_of(record: Any, where: str) -> str:
    parts: list[Any] = [record] if isinstance(record, str) else [None]
    if isinstance(record, dict):
        parts = [record.get("title") or "", record.get("text")]
    if not all(isinstance(part, str) for part in parts):
        raise TaskError(f"{where}: found {json.dumps(record)[:80]}; expected an object with text, or a JSON string")
    return " ".join(part.strip() for part in parts if part.strip())
