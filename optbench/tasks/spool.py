"""Texts of a corpus by id: small corpora in memory, large ones in a temporary file."""

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from optbench.errors import TaskError

__all__ = ["SpooledTexts", "keep_texts"]

# This much text, 300,000 product titles, takes about 100 MB as Python strings.
MEMORY_BYTES = 32 * 1024 * 1024


class SpooledTexts(Mapping[str, str]):
    """A mapping with its ids in memory, about 150 bytes each, and its texts in an anonymous file, deleted with the mapping.

    Python's `tempfile` chooses the folder: if /tmp is in memory, set TMPDIR to a folder on disk.
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """Write all texts; of a duplicate id, the last text counts.

        Raises:
            TaskError: the file cannot be written, usually because the disk is full.
        """
        self._rows: dict[str, int] = {}
        self._ends = array("q", [0])
        try:
            self._file = tempfile.TemporaryFile(prefix="optbench-corpus-")  # noqa: SIM115  # closed by the line below
            weakref.finalize(self, self._file.close)
            for name, text in texts:
                content = text.encode("utf-8", errors="surrogatepass")
                self._file.write(content)
                self._rows[name] = len(self._ends) - 1
                self._ends.append(self._ends[-1] + len(content))
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise TaskError(
                f"{folder}: {error.strerror}: a temporary file is needed for a corpus of more than {len(self._rows)} texts; "
                "free space there, or set TMPDIR to a folder with more"
            ) from error

    def __getitem__(self, name: str) -> str:
        row = self._rows[name]
        start, end = self._ends[row], self._ends[row + 1]
        return os.pread(self._file.fileno(), end - start, start).decode("utf-8", errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def keep_texts(texts: Iterable[tuple[str, str]], memory_bytes: int = MEMORY_BYTES) -> Mapping[str, str]:
    """Keep texts by id: in a dictionary up to `memory_bytes` of text, else in a temporary file."""
    held: dict[str, str] = {}
    size = 0
    remaining = iter(texts)
    for name, text in remaining:
        held[name] = text
        size += len(text)
        if size > memory_bytes:
            return SpooledTexts(chain(held.items(), remaining))
    return held
