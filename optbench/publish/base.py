"""The interface of a destination: a place to upload an artifact's files to and download them from."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast
from urllib.parse import urlsplit, urlunsplit

from optbench.artifact.manifest import MANIFEST, MANIFEST_BYTES_MAX, SIGNATURE, FileEntry, Manifest, parse_manifest
from optbench.errors import PublishError
from optbench.machine.progress import Progress

__all__ = ["SIGNATURE_BYTES_MAX", "Bundle", "Destination", "Progress", "Uploaded", "read_bundle", "shown"]

# A minisign signature has about 350 bytes.
SIGNATURE_BYTES_MAX = 8 * 1024


@dataclass(frozen=True)
class Bundle:
    """The files of an artifact in the order of upload: the manifest last, which completes the artifact.

    Attributes:
        files: every file by name, including manifest and signature.
        signature: of the manifest; None if unsigned.
        labels: annotations for destinations that support them, such as the license and the recipe's hash.
        scratch: a folder that holds the signature, so that signing leaves the artifact's own folder unchanged.
    """

    folder: Path
    files: Mapping[str, FileEntry]
    manifest: bytes
    signature: bytes | None
    labels: Mapping[str, str]
    scratch: Path

    @property
    def title(self) -> str:
        """One line for a commit message or an annotation."""
        return f"optbench artifact {hashlib.sha256(self.manifest).hexdigest()[:12]}"

    def path(self, name: str) -> Path:
        """Where a file's bytes are on this machine."""
        return (self.scratch if name == SIGNATURE else self.folder) / name

    def signed(self, signature: bytes) -> Self:
        """The same files with this signature."""
        (self.scratch / SIGNATURE).write_bytes(signature)
        files = {name: entry for name, entry in self.files.items() if name not in (SIGNATURE, MANIFEST)}
        return replace(self, files={**files, SIGNATURE: _entry(signature), MANIFEST: _entry(self.manifest)}, signature=signature)


@dataclass(frozen=True)
class Uploaded:
    """The files that an upload sent (the destination had the others), and where they are now: a commit, a tag, a folder."""

    sent: tuple[str, ...]
    where: str


class Destination(ABC):
    """A place to publish to and pull from. Creating one opens no connection; every method may raise PublishError.

    Attributes:
        url: the address for messages and records, without user name, password or query.
        compares: what `missing` goes by: the hashes of the files there, or only their names and sizes.
    """

    url: str
    compares: Literal["hashes", "sizes"] = "hashes"

    @abstractmethod
    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Read a small file; None if the destination does not have it, an error if it is larger than `bytes_max`."""

    @abstractmethod
    def missing(self, bundle: Bundle) -> list[str]:
        """Names of the files that an upload would have to send. Changes nothing."""

    @abstractmethod
    def upload(self, bundle: Bundle, names: Sequence[str], progress: Progress) -> Uploaded:
        """Upload these files of the bundle, the manifest last. If interrupted at any point, the next publication resumes."""

    @abstractmethod
    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """Append a file's content from offset `file.tell()` on, at most to the size in `entry`. The caller checks the hash."""

    def damaged(self, bundle: Bundle, names: Iterable[str], progress: Progress) -> list[str]:
        """Those of the published files `names` that differ from the bundle's; every byte of them is read."""
        entries = {name: bundle.files[name] for name in names}
        total, done = sum(entry.size_bytes for entry in entries.values()) or 1, 0
        found = []
        for name, entry in entries.items():
            progress(f"reading {name}", done / total)
            content = _Hashed()
            self.download(name, entry, cast("BinaryIO", content), lambda _: None)
            if (content.tell(), content.sha256) != (entry.size_bytes, entry.sha256):
                found.append(name)
            done += entry.size_bytes
        return found

    def read_manifest(self) -> Manifest | None:
        """The manifest of the published artifact; None if there is none."""
        content = self.read(MANIFEST, MANIFEST_BYTES_MAX)
        return None if content is None else parse_manifest(content, f"{self.url}/{MANIFEST}")


class _Hashed(io.RawIOBase):
    """A file that keeps only the hash and the size of what is written to it."""

    def __init__(self) -> None:
        self._hash, self._size = hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        self._hash.update(content)
        self._size += len(content)
        return len(content)

    def tell(self) -> int:
        return self._size

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def read_bundle(folder: Path, manifest: bytes, labels: Mapping[str, str], scratch: Path) -> Bundle:
    """The bundle of a sealed folder, with its signature if it has one; `scratch` is an empty folder for the bundle's own files."""
    files = {**parse_manifest(manifest, str(folder / MANIFEST)).files, MANIFEST: _entry(manifest)}
    bundle = Bundle(folder, files, manifest, None, labels, scratch)
    signature = folder / SIGNATURE
    return bundle.signed(signature.read_bytes()) if signature.is_file() else bundle


def _entry(content: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def shown(url: str) -> str:
    """An address without user name, password, query and fragment, so that it can be printed."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def too_large(where: str, bytes_max: int) -> PublishError:
    """The error for a file that exceeds its limit."""
    return PublishError(f"{where}: larger than the limit of {bytes_max} bytes; do not use it")
