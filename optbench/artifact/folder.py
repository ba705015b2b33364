"""A model on disk that never changes again: sealed, hashed, verified before use.

Every artifact is a folder in the sentence-transformers layout. The tokenizer, `config.json`, `modules.json` and the other small files lie
at its top, and the weights where its kind keeps them:

    checkpoint   model.safetensors
    onnx         onnx/model.onnx (+ onnx/model.onnx_data when the weights are external)
    openvino     openvino/openvino_model.xml + .bin

`manifest.json` lists every file with its size and sha256; the artifact's sha256 is that of the manifest. `manifest.json.minisig` may hold a
signature of the manifest.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from optbench.artifact.file_types import is_weights
from optbench.artifact.manifest import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    SIGNATURE,
    FileEntry,
    Kind,
    LayerSize,
    Manifest,
    Weights,
    parse_manifest,
)
from optbench.errors import ArtifactError, MachineError

__all__ = [
    "Artifact",
    "Inspection",
    "copy_companions",
    "hash_file",
    "inspect_artifact",
    "open_artifact",
    "read_manifest_sha256",
    "seal",
]

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
# How many problems of a folder an error lists.
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Artifact:
    """A sealed folder; `sha256` is that of its manifest, and so of all its bytes."""

    kind: Kind
    path: Path
    sha256: str
    weights: Weights = "real"

    @property
    def main_file(self) -> Path:
        """The graph or weight file that an engine opens."""
        return self.path / self.kind.main_file

    @property
    def manifest(self) -> Manifest:
        """The manifest, read again on each access."""
        return _read_manifest(self.path)[0]

    @property
    def size_bytes(self) -> int:
        """Total size of its files."""
        return self.manifest.size_bytes


def hash_file(path: Path) -> str:
    """The sha256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, which takes no space and no time, or a copy where there can be none.

    Writing to the source later changes the target too: verification of the target's artifact finds that.
    """
    # Another file system, one without hard links, or another user's file (fs.protected_hardlinks).
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def _listed_files(folder: Path) -> list[str]:
    """Relative POSIX paths of the regular files below `folder`, sorted, without the manifest and its signature."""
    names = []
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise ArtifactError(f"{path}: a link; an artifact holds regular files only: replace it with the file itself")
        if stat.S_ISREG(mode):
            names.append(path.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(mode):
            raise ArtifactError(f"{path}: neither a file nor a folder; an artifact holds regular files only: remove it")
    return sorted(name for name in names if name not in (MANIFEST, SIGNATURE))


def seal(staging: Path, destination: Path, kind: Kind, weights: Weights, layers: Iterable[LayerSize] = ()) -> Artifact:
    """Hash a finished folder, write its manifest and move it into place.

    An existing folder is swapped with the new one in one system call, so after a crash at any moment one of the two is whole at
    `destination`. Where the file system cannot swap, the old one is moved aside for an instant. `staging` must be on the same file system,
    and is gone afterwards.

    Raises:
        ArtifactError: the folder lacks its kind's main file, or holds a link.
        MachineError: it could not be written (a full disk); the destination is unchanged.
    """
    if not (staging / kind.main_file).is_file():
        raise ArtifactError(f"{staging}: has no {kind.main_file}, which every {kind} artifact needs")
    try:
        files = {
            name: FileEntry(sha256=hash_file(staging / name), size_bytes=(staging / name).stat().st_size) for name in _listed_files(staging)
        }
        content = Manifest(kind=kind, weights=weights, files=files, layers=tuple(layers)).to_bytes()
        with (staging / MANIFEST).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        destination.parent.mkdir(parents=True, exist_ok=True)
        _move_into_place(staging, destination)
    except OSError as error:
        cure = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make the folder writable"
        raise MachineError(f"{destination}: cannot be written: {error.strerror}; {cure} and run again") from error
    return Artifact(kind, destination, hashlib.sha256(content).hexdigest(), weights)


def _move_into_place(staging: Path, destination: Path) -> None:
    """Rename `staging` to `destination`; if that fails, what was there is still there."""
    if not destination.is_dir():
        staging.rename(destination)
    elif _exchange(staging, destination):
        # The new artifact is in place; what cannot be removed of the old one stays in the staging folder, which is swept later.
        shutil.rmtree(staging, ignore_errors=True)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent)) / destination.name
        destination.rename(aside)
        try:
            staging.rename(destination)
        except OSError:
            aside.rename(destination)
            raise
        finally:
            shutil.rmtree(aside.parent, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one system call; False where the kernel or the file system cannot."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    path = folder / MANIFEST
    try:
        # Checked before it is opened: opening a pipe would wait for its writer.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArtifactError(f"{path}: not a regular file; make the artifact again")
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; an artifact folder holds a {MANIFEST}: give one made by optbench apply") from error
    if len(content) > MANIFEST_BYTES_MAX:
        raise ArtifactError(f"{path}: larger than {MANIFEST_BYTES_MAX} bytes, which no manifest is; download it again")
    return parse_manifest(content, str(path)), content


def read_manifest_sha256(folder: Path) -> str | None:
    """The sha256 of an artifact's manifest, without any verification; None where there is no manifest."""
    try:
        return hash_file(folder / MANIFEST)
    except OSError:
        return None


@dataclass(frozen=True)
class Inspection:
    """How a folder differs from its manifest: one problem for each file that is missing, extra, truncated or changed."""

    manifest: Manifest
    sha256: str
    problems: tuple[str, ...]


def inspect_artifact(folder: Path, *, verify: bool = True) -> Inspection:
    """Compare a folder with its manifest; without `verify`, only which files are there and their sizes.

    Raises:
        ArtifactError: the manifest is missing or broken, the folder holds a link, or a file cannot be read.
    """
    manifest, content = _read_manifest(folder)
    problems = []
    try:
        present = set(_listed_files(folder))
        for name, entry in manifest.files.items():
            path = folder / name
            if name not in present:
                problems.append(f"{name} is missing")
            elif path.stat().st_size != entry.size_bytes:
                problems.append(f"{name} has {path.stat().st_size} bytes, not {entry.size_bytes}")
            elif verify and hash_file(path) != entry.sha256:
                problems.append(f"{name} has changed since it was sealed")
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or folder}: cannot be read: {error.strerror}; make it readable, or download it again"
        ) from error
    problems += [f"{ascii(name)[1:-1]} is not in the manifest" for name in sorted(present - manifest.files.keys())]
    if not problems and manifest.kind.main_file not in manifest.files:
        problems.append(f"its kind is {manifest.kind}, but it holds no {manifest.kind.main_file}")
    return Inspection(manifest, hashlib.sha256(content).hexdigest(), tuple(problems))


def open_artifact(folder: Path, *, verify: bool = True) -> Artifact:
    """Open a sealed folder; without `verify` only names and sizes of its files are checked, and no file is hashed.

    Raises:
        ArtifactError: a file is missing, extra, truncated or changed (each is named), or cannot be read.
    """
    found = inspect_artifact(folder, verify=verify)
    if problems := found.problems:
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise ArtifactError(f"{folder}: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}; make the artifact again")
    return Artifact(found.manifest.kind, folder, found.sha256, found.manifest.weights)


def copy_companions(source: Path, out: Path, *, leave_out: Iterable[str] = ()) -> None:
    """Copy an artifact's small files (tokenizer, configs, modules) without weights, graphs, manifest and the paths in `leave_out`."""
    left_out = set(leave_out)
    for name in _listed_files(source):
        if name.split("/")[0] in ("onnx", "openvino") or is_weights(name) or name in left_out:
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
