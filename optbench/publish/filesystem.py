"""A folder, or any URL that fsspec supports: file://, s3://, gs://, memory://.

A journal at the destination lists the uploaded files, so that an interrupted publication resumes with the next file. The manifest is
uploaded last, then the journal is deleted. Each file system's own library finds the credentials.
"""

import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from optbench.artifact.manifest import MANIFEST, MANIFEST_BYTES_MAX, SIGNATURE, FileEntry
from optbench.errors import ArtifactError, PublishError
from optbench.publish.base import Bundle, Destination, Progress, Uploaded, shown, too_large

__all__ = ["FileSystem"]

JOURNAL = ".publishing.json"
JOURNAL_BYTES_MAX = 4 * 1024 * 1024
BLOCK_BYTES = 1 << 20


class FileSystem(Destination):
    """A folder on any file system that fsspec supports."""

    def __init__(self, url: str) -> None:
        """Find the file system for an address.

        Raises:
            PublishError: fsspec does not support the scheme, or its library is not installed.
        """
        from fsspec.core import url_to_fs

        self.url = shown(url)
        try:
            self._fs, self._root = url_to_fs(url)
        except ImportError as error:
            raise PublishError(f"{self.url}: {error}; optbench needs that library for such an address") from error
        except (ValueError, OSError) as error:
            raise PublishError(
                f"{self.url}: not an address that fsspec can open: {error}; give a folder or a URL such as s3://bucket/x"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _failed(self, what: str, error: Exception) -> PublishError:
        return PublishError(f"{self.url}: {what}: {error}; fix that and run again to resume")

    def _listing(self) -> dict[str, int]:
        """Names and sizes of all files below the root."""
        try:
            # A cached listing would hide what has changed since.
            self._fs.invalidate_cache()
            found = self._fs.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each file system has errors of its own
            raise self._failed("cannot be listed", error) from error
        root = PurePosixPath("/" + self._root.strip("/"))
        return {str(PurePosixPath("/" + path.strip("/")).relative_to(root)): int(info["size"]) for path, info in found.items()}

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """See the base class."""
        try:
            with self._fs.open(self._path(name), "rb") as file:
                content: bytes = file.read(bytes_max + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise self._failed(f"{name} cannot be read", error) from error
        if len(content) > bytes_max:
            raise too_large(f"{self.url}/{name}", bytes_max)
        return content

    def _known(self, listing: dict[str, int]) -> dict[str, str | None]:
        """The files that earlier publications uploaded, with the sha256 of complete ones, from the manifest and the journal."""
        known: dict[str, str | None] = {}
        if MANIFEST in listing:
            try:
                manifest = self.read_manifest()
            except ArtifactError as error:
                raise PublishError(f"{error}, or choose an empty folder") from error
            for name, entry in manifest.files.items() if manifest else ():
                known[name] = entry.sha256 if listing.get(name) == entry.size_bytes else None
        if JOURNAL in listing:
            try:
                known |= dict(json.loads(self.read(JOURNAL, JOURNAL_BYTES_MAX) or b"{}"))
            except (ValueError, TypeError):
                known = dict.fromkeys(known)  # interrupted while it was written: everything is uploaded again
        return known

    def _missing(self, bundle: Bundle, listing: dict[str, int], known: dict[str, str | None]) -> list[str]:
        others = sorted(listing.keys() - bundle.files.keys() - known.keys() - {JOURNAL, MANIFEST, SIGNATURE})
        if others:
            raise PublishError(f"{self.url}: contains files that optbench did not publish ({others[0]}); choose an empty folder")
        missing = []
        for name, entry in bundle.files.items():
            if name in (MANIFEST, SIGNATURE):
                present = name in listing and self.read(name, MANIFEST_BYTES_MAX) == (bundle.folder / name).read_bytes()
            else:
                present = known.get(name) == entry.sha256 and listing.get(name) == entry.size_bytes
            if not present:
                missing.append(name)
        return missing

    def missing(self, bundle: Bundle) -> list[str]:
        """See the base class; refuses a folder that contains other files."""
        listing = self._listing()
        return self._missing(bundle, listing, self._known(listing))

    def upload(self, bundle: Bundle, progress: Progress) -> Uploaded:
        """See the base class."""
        listing = self._listing()
        journal = self._known(listing)
        missing = self._missing(bundle, listing, journal)
        stale = sorted(listing.keys() - bundle.files.keys())
        total = sum(bundle.files[name].size_bytes for name in missing) or 1
        done = 0
        try:
            for name in missing:
                progress(f"sending {name}", done / total)
                # Marked incomplete first: if the connection breaks while a file is overwritten, its old hash must not count.
                self._write_journal({**journal, name: None})
                self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(bundle.folder / name), self._path(name))
                journal[name] = bundle.files[name].sha256
                self._write_journal(journal)
                done += bundle.files[name].size_bytes
            for name in {*stale, *((JOURNAL,) if missing else ())}:
                self._fs.rm_file(self._path(name))
        except Exception as error:
            raise self._failed("publishing stopped", error) from error
        return Uploaded(tuple(missing), self.url)

    def _write_journal(self, journal: dict[str, str | None]) -> None:
        self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(self._path(JOURNAL), json.dumps(journal).encode())

    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """See the base class."""
        try:
            with self._fs.open(self._path(name), "rb") as source:
                source.seek(file.tell())
                copy_bounded(source, file, entry.size_bytes, report)
        except FileNotFoundError as error:
            raise PublishError(f"{self.url}/{name}: missing, though the manifest lists it; publish it again") from error
        except Exception as error:
            raise self._failed(f"{name} cannot be read", error) from error


def copy_bounded(source: Any, file: BinaryIO, size_bytes: int, report: Callable[[int], None]) -> None:
    """Append blocks of `source` until `file` has `size_bytes`."""
    while (room := size_bytes - file.tell()) > 0 and (block := source.read(min(BLOCK_BYTES, room))):
        file.write(block)
        report(file.tell())
