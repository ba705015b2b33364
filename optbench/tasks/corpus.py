"""Corpora: texts without judgments, read a line at a time, so that a file of any size takes little memory.

    *.txt     a text a line
    *.jsonl   {"text", perhaps "title"} a line, or a JSON string a line
    folder    in the BEIR layout: its corpus.jsonl; the queries are left to the test

Either kind of file may be gzipped (.gz).
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optbench.errors import TaskError
from optbench.tasks.base import LINE_CHARACTERS_MAX, open_lines

__all__ = ["find_corpus", "read_corpus"]

WANTED = "a .txt file (a text a line), a .jsonl file (text, perhaps title), either perhaps .gz, or a BEIR folder"


def find_corpus(path: Path) -> Path:
    """The one file that holds a corpus's texts.

    Raises:
        TaskError: there is none, or it is of another kind.
    """
    if path.is_dir():
        found = next((path / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path / name).is_file()), None)
        if found is None:
            raise TaskError(f"{path}: a folder without corpus.jsonl; {WANTED} is wanted")
        return found
    if not path.is_file():
        raise TaskError(f"{path}: no such file or folder; a corpus's path is relative to its recipe, and {WANTED} is wanted")
    if _kind(path) not in (".txt", ".jsonl"):
        raise TaskError(f"{path}: a {path.suffix or 'nameless'} file; {WANTED} is wanted")
    return path


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def read_corpus(path: Path) -> Iterator[str]:
    """The texts of a corpus in its order; blank ones are left out.

    Raises:
        TaskError: a file that is missing, cut, not UTF-8, or holds another thing in some line; says which.
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
    except UnicodeDecodeError as error:  # files are decoded in blocks, so the line is not known
        raise TaskError(f"{file_path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except ValueError as error:
        raise TaskError(f"{file_path}:{number}: not JSON: {error}; {WANTED} is wanted") from error
    except (OSError, EOFError, zlib.error, RecursionError) as error:  # gzip says a bad or cut file by the first three
        raise TaskError(f"{file_path}:{number}: cannot be read: {error}; fetch the file anew") from error


def _text_of(record: Any, where: str) -> str:
    parts: list[Any] = [record] if isinstance(record, str) else [None]
    if isinstance(record, dict):
        parts = [record.get("title") or "", record.get("text")]
    if not all(isinstance(part, str) for part in parts):
        raise TaskError(f"{where}: found {json.dumps(record)[:80]}; an object with text, or a JSON string, is wanted")
    return " ".join(part.strip() for part in parts if part.strip())
