"""What a destination is: somewhere that takes an artifact's files, and gives them back."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

from optbench.artifact.folder import MANIFEST, MANIFEST_BYTES_MAX, SIGNATURE, FileEntry, Manifest, parse_manifest
from optbench.errors import PublishError
from optbench.machine.progress import Progress

__all__ = ["SIGNATURE_BYTES_MAX", "Bundle", "Destination", "Progress", "Uploaded", "read_bundle", "shown"]

# A minisign signature has some 350 bytes.
SIGNATURE_BYTES_MAX = 8 * 1024


@dataclass(frozen=True)
class Bundle:
    """An artifact as it is sent: its files, then its manifest, which makes what was sent an artifact.

    Attributes:
        folder: where the files lie.
        files: every file by its name, manifest and signature among them.
        manifest: the manifest's bytes.
        signature: the signature's bytes, if there is one.
        labels: facts for the destination's own annotations, such as the licence and the recipe's hash.
    """

    folder: Path
    files: Mapping[str, FileEntry]
    manifest: bytes
    signature: bytes | None
    labels: Mapping[str, str]

    @property
    def title(self) -> str:
        """A line for a commit or an annotation."""
        return f"optbench artifact {hashlib.sha256(self.manifest).hexdigest()[:12]}"


@dataclass(frozen=True)
class Uploaded:
    """What a publication did.

    Attributes:
        sent: names of the files whose bytes went over; the destination had the others.
        where: the address of just this publication, such as a commit or a digest.
    """

    sent: tuple[str, ...]
    where: str


class Destination(ABC):
    """Somewhere to publish to and pull from. Opening one connects to nothing; every method may raise PublishError.

    Attributes:
        url: as it is shown and recorded: without user name, password or query.
    """

    url: str

    @abstractmethod
    def read(self, name: str, bytes_max: int) -> bytes | None:
        """A small file's bytes; None where the destination does not hold it; an error where it is larger than `bytes_max`."""

    @abstractmethod
    def missing(self, bundle: Bundle) -> list[str]:
        """Of the bundle's files, those whose bytes would have to go over. Changes nothing."""

    @abstractmethod
    def upload(self, bundle: Bundle, progress: Progress) -> Uploaded:
        """Send what is missing, the manifest last. Stopped at any moment, the next call goes on from there."""

    @abstractmethod
    def download(self, name: str, entry: FileEntry, file: BinaryIO, report: Callable[[int], None]) -> None:
        """Append a file's bytes, from `file.tell()` on, to `file`; at most what `entry` says. The caller checks the hash."""

    def read_manifest(self) -> Manifest | None:
        """The manifest of what is published there now; None where nothing is."""
        content = self.read(MANIFEST, MANIFEST_BYTES_MAX)
        return None if content is None else parse_manifest(content, f"{self.url}/{MANIFEST}")


def read_bundle(folder: Path, manifest: bytes, labels: Mapping[str, str]) -> Bundle:
    """The bundle of a sealed folder, with the signature that lies in it."""
    files = dict(parse_manifest(manifest, str(folder / MANIFEST)).files)
    signature = (folder / SIGNATURE).read_bytes() if (folder / SIGNATURE).is_file() else None
    for name, content in ((SIGNATURE, signature), (MANIFEST, manifest)):
        if content is not None:
            files[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    return Bundle(folder, files, manifest, signature, labels)


def shown(url: str) -> str:
    """An address as it may be printed: without user name, password, query and fragment."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def too_large(where: str, bytes_max: int) -> PublishError:
    """The error of a small file that is none."""
    return PublishError(f"{where}: larger than {bytes_max} bytes, which no such file is; do not use it")
