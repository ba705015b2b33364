"""Files of texts as they are found: JSON lines, CSV, TSV and Parquet, plain or gzipped, with or without a byte order mark.

Every error names the file and the line (in Parquet the row), what was found, and what to do.
"""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optbench.errors import TaskError
from optbench.machine.extras import require_extra

__all__ = [
    "TABLE_SUFFIXES",
    "check_text",
    "column_name",
    "files_of",
    "find_columns",
    "find_table",
    "read_cells",
    "read_lines",
    "read_objects",
    "read_text",
    "suffix_of",
]

TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""The files that `read_objects` reads, in the order in which `find_table` looks for them."""
# SQuAD files take a few megabytes; the limit keeps a hostile one out of memory.
FILE_BYTES_MAX = 512 * 1024 * 1024
# Far above BEIR's longest document; without a limit, a file without line breaks would be read into memory whole.
LINE_BYTES_MAX = 64 * 1024 * 1024


def suffix_of(path: Path) -> str:
    """A file's suffix in lower case, `.gz` included: `.jsonl.gz`."""
    inner = Path(path.stem).suffix if path.suffix.lower() == ".gz" else ""
    return (inner + path.suffix).lower()


def find_table(folder: Path, stem: str) -> Path | None:
    """The file of a folder that holds a table of this name, such as `corpus.jsonl.gz`; None if there is none."""
    return next((path for suffix in TABLE_SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def files_of(path: Path, suffixes: Sequence[str], expected: str) -> tuple[Path, ...]:
    """The files of a folder that have one of these suffixes, sorted by name; the path itself if it is a file.

    Raises:
        TaskError: the path does not exist, or the folder has no such file.
    """
    if not path.is_dir():
        if not path.is_file():
            raise TaskError(f"{path}: no such file or folder; expected {expected}")
        return (path,)
    found = tuple(sorted(file for file in path.iterdir() if suffix_of(file) in suffixes and file.is_file()))
    if not found:
        raise TaskError(f"{path}: contains no {' or '.join(suffixes)} file; expected {expected}")
    return found


def check_text(text: str, where: str) -> str:
    """Give the text back if it can be encoded as UTF-8; `where` names its file and line.

    Raises:
        TaskError: it contains a lone surrogate, which JSON can write and no tokenizer accepts.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        start = max(0, error.start - 20)
        raise TaskError(
            f"{where}: character {error.start} is a lone surrogate, half of a UTF-16 pair: {text[start : error.start + 20]!r}; "
            "write the whole character, or remove it"
        ) from error
    return text


def read_text(path: Path, expected: str) -> str:
    """Read a small file whole, without a byte order mark.

    Raises:
        TaskError: the file is missing, too large or not UTF-8; says what it should hold.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise TaskError(f"{path}: larger than {FILE_BYTES_MAX} bytes; expected {expected}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}; expected {expected}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 at byte {error.start}; expected {expected}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line of a UTF-8 file; a name that ends in .gz means gzip.

    A byte order mark is dropped; line breaks are kept, as CSV fields may contain some.

    Raises:
        TaskError: the file is missing, damaged, not UTF-8, or has a line of more than `LINE_BYTES_MAX`.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while raw := file.readline(LINE_BYTES_MAX):
                number += 1
                if len(raw) == LINE_BYTES_MAX:
                    raise TaskError(f"{path}:{number}: longer than {LINE_BYTES_MAX} bytes; put one entry on each line")
                yield number, (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start} of the line); save it as UTF-8") from error
    except FileNotFoundError as error:
        raise TaskError(f"{path}: no such file; check the path") from error
    except (OSError, EOFError, zlib.error) as error:  # what gzip raises for a damaged or truncated file
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"{path}:{number + 1}: cannot be read: {reason}; make it readable, or download it again") from error


def read_cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place, `file:line`, and the cells of each row that is not blank, a header among them.

    `.csv` is comma-separated with quotes. Any other text file is tab-separated, without quotes, if its first row has a tab; else
    white space separates. Of a Parquet file, the first row is its column names.

    Raises:
        TaskError: as for `read_lines`, or quotes that do not match.
        MissingExtraError: Parquet without pyarrow.
    """
    kind = suffix_of(path).removesuffix(".gz")
    if kind == ".parquet":
        header: list[str] = []
        for where, row in _read_parquet(path):
            if not header:
                header = list(row)
                yield f"{path}: header", header
            yield where, ["" if row[name] is None else str(row[name]) for name in header]
    elif kind == ".csv":
        yield from _read_csv(path)
    else:
        separator: str | None = ""
        for number, line in read_lines(path):
            if line.strip():
                separator = ("\t" if "\t" in line else None) if separator == "" else separator
                text = line.rstrip("\r\n")
                yield f"{path}:{number}", [cell.strip() for cell in text.split(separator)]


def read_objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place, `file:line`, and the value of each row: in JSON lines any JSON value, else a mapping by column name.

    Raises:
        TaskError: as for `read_cells`, or a line that is not JSON, or a row with more or fewer cells than the header.
    """
    kind = suffix_of(path).removesuffix(".gz")
    if kind == ".parquet":
        yield from _read_parquet(path)
    elif kind == ".jsonl":
        for number, line in read_lines(path):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise TaskError(f"{path}:{number}: not JSON: {error}; expected one JSON object on each line") from error
    else:
        header: list[str] | None = None
        for where, cells in read_cells(path):
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                names = ", ".join(header)[:120]
                raise TaskError(f"{where}: {len(cells)} cells, but the header has {len(header)} ({names}); quote cells with separators")
            yield where, dict(zip(header, cells, strict=True))


def column_name(text: str) -> str:
    """A column's name as it is compared: `Query_ID`, `query id` and `query-id` are one."""
    return "".join(character for character in text.casefold() if character.isalnum())


def find_columns(header: Sequence[str], names: Mapping[str, frozenset[str]]) -> dict[str, int] | None:
    """The place of each wanted column in a header, by the spellings that `column_name` gives; None if one is not there."""
    found: dict[str, int] = {}
    for index, cell in enumerate(header):
        key = next((key for key, spellings in names.items() if column_name(cell) in spellings), None)
        if key is not None:
            found.setdefault(key, index)
    return found if len(found) == len(names) else None


def _read_csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    csv.field_size_limit(LINE_BYTES_MAX)  # 128 KB by default, and documents are longer
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise TaskError(f"{path}:{reader.line_num}: {error}; quote cells that contain commas, quotes or line breaks") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    require_extra("parquet", f"{path}: reading Parquet")
    import pyarrow as arrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (OSError, arrow.ArrowException) as error:
        raise TaskError(f"{path}: row {number + 1}: cannot be read as Parquet: {error}; write the file again") from error
