"""A folder, or any URL that fsspec supports: file://, s3://, gs://, memory://.

Files in a folder of this machine are compared by their hash. Elsewhere, a journal at the destination lists the uploaded files, so that an
interrupted publication resumes with the next file. The manifest is uploaded last, then the journal is deleted. Each file system's own
library finds the credentials.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from optbench.artifact.folder import hash_file
from optbench.artifact.manifest import MANIFEST, MANIFEST_BYTES_MAX, SIGNATURE, FileEntry, Kind
from optbench.errors import ArtifactError, PublishError
from optbench.machine.extras import require_extra
from optbench.publish.base import Bundle, Destination, Progress, Uploaded, shown, too_large

__all__ = ["FileSystem"]

JOURNAL = ".publishing.json"
JOURNAL_BYTES_MAX = 4 * 1024 * 1024
BLOCK_BYTES = 1 << 20
# The schemes whose addresses begin with a bucket or container. It is never created: most often its name is a typo.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "obs"})
EXTRA_OF_SCHEME: Mapping[str, str] = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class FileSystem(Destination):
    """A folder on any file system that fsspec supports."""

    def __init__(self, url: str) -> None:
        """Find the file system for an address.

        Raises:
            PublishError: fsspec does not support the scheme, its library is not installed, or the address lacks its bucket.
            MissingExtraError: the scheme needs one of optbench's extras.
        """
        from fsspec.core import url_to_fs

        self.url = shown(url)
        # The last of a chain such as simplecache::s3://bucket/x.
        parts = urlsplit(url.rpartition("::")[2]) if "://" in url else urlsplit("")
        self._bucket = parts.netloc.rpartition("@")[2] if parts.scheme in OBJECT_STORES else None
        if self._bucket == "":
            raise PublishError(f"{parts.scheme}:// names no bucket; write {parts.scheme}://bucket/folder")
        if extra := EXTRA_OF_SCHEME.get(parts.scheme):
            require_extra(extra, self.url)
        try:
            self._fs, self._root = url_to_fs(url)
        except ImportError as error:
            raise PublishError(f"{self.url}: {error}; optbench needs that library for such an address") from error
        except (ValueError, OSError) as error:
            raise PublishError(
                f"{self.url}: not an address that fsspec can open: {error}; give a folder or a URL such as s3://bucket/x"
            ) from error
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self.compares = "hashes" if self._is_local else "sizes"

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
            found = {}
        except Exception as error:  # each file system has errors of its own
            raise self._failed("cannot be listed", error) from error
        if not found:
            self._check_bucket()
        root = PurePosixPath("/" + self._root.strip("/"))
        return {str(PurePosixPath("/" + path.strip("/")).relative_to(root)): int(info["size"]) for path, info in found.items()}

    def _check_bucket(self) -> None:
        if self._bucket is None:
            return
        try:
            exists = self._fs.exists(self._root.strip("/").partition("/")[0])
        except Exception:  # these credentials may write to the bucket, but not look at it
            return
        if not exists:
            raise PublishError(f"{self.url}: there is no bucket {self._bucket}; check its name, or create it")

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
                # An artifact whose manifest is damaged is repaired; another program's manifest.json is not ours to replace.
                if not any(kind.main_file in listing for kind in Kind):
                    raise PublishError(f"{error}, or choose an empty folder") from error
                manifest = None
            for name, entry in manifest.files.items() if manifest else ():
                known[name] = entry.sha256 if listing.get(name) == entry.size_bytes else None
        if JOURNAL in listing:
            try:
                known |= dict(json.loads(self.read(JOURNAL, JOURNAL_BYTES_MAX) or b"{}"))
            except (ValueError, TypeError):
                known = dict.fromkeys(known)  # interrupted while it was written: everything is uploaded again
        return known

    def _is_there(self, name: str, bundle: Bundle, known: dict[str, str | None]) -> bool:
        """Whether a listed file of the right size has the bundle's content."""
        if name in (MANIFEST, SIGNATURE):
            return self.read(name, MANIFEST_BYTES_MAX) == bundle.path(name).read_bytes()
        sha256 = bundle.files[name].sha256
        if not self._is_local:
            return known.get(name) == sha256
        try:
            return hash_file(Path(self._path(name))) == sha256
        except OSError as error:
            raise self._failed(f"{name} cannot be read", error) from error

    def missing(self, bundle: Bundle) -> list[str]:
        """See the base class; refuses a folder that contains other files."""
        listing = self._listing()
        known = self._known(listing)
        others = sorted(listing.keys() - bundle.files.keys() - known.keys() - {JOURNAL, MANIFEST, SIGNATURE})
        if others:
            raise PublishError(f"{self.url}: contains files that optbench did not publish ({others[0]}); choose an empty folder")
        return [
            name for name, entry in bundle.files.items() if listing.get(name) != entry.size_bytes or not self._is_there(name, bundle, known)
        ]

    def upload(self, bundle: Bundle, names: Sequence[str], progress: Progress) -> Uploaded:
        """See the base class."""
        listing = self._listing()
        journal = self._known(listing)
        stale = sorted(listing.keys() - bundle.files.keys() - {JOURNAL})
        total = sum(bundle.files[name].size_bytes for name in names) or 1
        done = 0
        try:
            for name in names:
                progress(f"sending {name}", done / total)
                # Marked incomplete first: if the connection breaks while a file is overwritten, its old hash must not count.
                self._write_journal({**journal, name: None})
                self._make_folder(self._path(name).rpartition("/")[0])
                self._fs.put_file(str(bundle.path(name)), self._path(name))
                journal[name] = bundle.files[name].sha256
                self._write_journal(journal)
                done += bundle.files[name].size_bytes
            for name in (*stale, *((JOURNAL,) if names or JOURNAL in listing else ())):
                self._fs.rm_file(self._path(name))
        except Exception as error:
            raise self._failed("publishing stopped", error) from error
        return Uploaded(tuple(names), self.url)

    def _make_folder(self, path: str) -> None:
        # In an object store a name needs no folder, and makedirs would create the bucket.
        if self._bucket is None:
            self._fs.makedirs(path, exist_ok=True)

    def _write_journal(self, journal: dict[str, str | None]) -> None:
        self._make_folder(self._root)
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
