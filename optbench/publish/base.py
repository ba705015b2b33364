"""The interface of a destination: a place to upload an artifact's files to and download them from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
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
        labels: annotations for destinations that support them, such as the license and the recipe's hash.
    """

    folder: Path
    files: Mapping[str, FileEntry]
    manifest: bytes
    signature: bytes | None
    labels: Mapping[str, str]

    @property
    def title(self) -> str:
        """One line for a commit message or an annotation."""
        return f"optbench artifact {hashlib.sha256(self.manifest).hexdigest()[:12]}"


@dataclass(frozen=True)
class Uploaded:
    """The files that an upload sent (the destination had the others), and where they are now: a commit, a tag, a folder."""

    sent: tuple[str, ...]
    where: str


class Destination(ABC):
    """A place to publish to and pull from. Creating one opens no connection; every method may raise PublishError.

    Attributes:
        url: the address for messages and records, without user name, password or query.
    """

    url: str

    @abstractmethod
    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Read a small file; None if the destination does not have it, an error if it is larger than `bytes_max`."""

    @abstractmethod
    def missing(self, bundle: Bundle) -> list[str]:
        """Names of the files that an upload would have to send. Changes nothing."""

    @abstractmethod
    def upload(self, bundle: Bundle, progress: Progress) -> Uploaded:
        """Upload the missing files, the manifest last. If interrupted at any point, the next call resumes."""

    @abstractmethod
    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """Append a file's content from offset `file.tell()` on, at most to the size in `entry`. The caller checks the hash."""

    def read_manifest(self) -> Manifest | None:
        """The manifest of the published artifact; None if there is none."""
        content = self.read(MANIFEST, MANIFEST_BYTES_MAX)
        return None if content is None else parse_manifest(content, f"{self.url}/{MANIFEST}")


def read_bundle(folder: Path, manifest: bytes, labels: Mapping[str, str]) -> Bundle:
    """The bundle of a sealed folder, with its signature if it has one."""
    files = dict(parse_manifest(manifest, str(folder / MANIFEST)).files)
    signature = (folder / SIGNATURE).read_bytes() if (folder / SIGNATURE).is_file() else None
    for name, content in ((SIGNATURE, signature), (MANIFEST, manifest)):
        if content is not None:
            files[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    return Bundle(folder, files, manifest, signature, labels)


def shown(url: str) -> str:
    """An address without user name, password, query and fragment, so that it can be printed."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def too_large(where: str, bytes_max: int) -> PublishError:
    """The error for a file that exceeds its limit."""
    return PublishError(f"{where}: larger than the limit of {bytes_max} bytes; do not use it")
