"""A model on disk that is never changed again: sealed, hashed, verified before use.

Every artifact, of any kind, is a folder in the sentence-transformers layout: the tokenizer, `config.json`, `modules.json`
and the other small files lie at its top, and the weights where that kind keeps them:

    checkpoint   model.safetensors
    onnx         onnx/model.onnx (+ onnx/model.onnx_data when the weights are external)
    openvino     openvino/openvino_model.xml + .bin

`manifest.json` lists every file with its size and sha256; the artifact's own sha256 is that of the manifest's bytes. A
signature of those bytes may lie beside it, in `manifest.json.minisig`.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError

from optbench.errors import ArtifactError, MachineError
from optbench.machine.frozen import Frozen

__all__ = [
    "MANIFEST",
    "MANIFEST_BYTES_MAX",
    "SIGNATURE",
    "Artifact",
    "FileEntry",
    "Inspection",
    "Kind",
    "LayerSize",
    "Manifest",
    "Weights",
    "copy_companions",
    "hash_file",
    "inspect_artifact",
    "open_artifact",
    "parse_manifest",
    "read_manifest_sha256",
    "seal",
]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
# A manifest names tens of files; the bound keeps a hostile one from being read into memory.
MANIFEST_BYTES_MAX = 4 * 1024 * 1024
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
# What an error lists of a folder in which much is wrong.
PROBLEMS_SHOWN = 10
# Weights and graphs of every framework, pickles among them: none of them is a companion.
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".onnx",
    ".onnx_data",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".pkl",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".ot",
    ".gguf",
)

Weights = Literal["real", "random"]


class Kind(StrEnum):
    """What an artifact holds, and so which steps take it and which engines open it."""

    CHECKPOINT = "checkpoint"
    ONNX = "onnx"
    OPENVINO = "openvino"

    @property
    def weight_folder(self) -> str:
        """The folder, relative to the artifact, that holds this kind's graph and weights."""
        return {"checkpoint": ".", "onnx": "onnx", "openvino": "openvino"}[self.value]

    @property
    def main_file(self) -> str:
        """The file, relative to the artifact, that an engine opens."""
        return {
            "checkpoint": "model.safetensors",
            "onnx": "onnx/model.onnx",
            "openvino": "openvino/openvino_model.xml",
        }[self.value]


class FileEntry(Frozen):
    """A file as the manifest lists it."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class LayerSize(Frozen):
    """One layer of a pruned body."""

    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1)


class Manifest(Frozen):
    """The list of an artifact's files, and where its weights come from.

    Schema 1: schema_version, kind, weights, files; layers, where they differ.
    """

    schema_version: Literal[1] = 1
    kind: Kind
    weights: Weights
    files: dict[str, FileEntry]
    # Left out where there is none, so that a manifest of alike layers keeps its bytes and its hash.
    layers: tuple[LayerSize, ...] = Field(default=(), exclude_if=lambda layers: not layers)

    @property
    def size_bytes(self) -> int:
        """Total size of the listed files."""
        return sum(entry.size_bytes for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """The canonical JSON that is hashed and written."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


@dataclass(frozen=True)
class Artifact:
    """A sealed folder.

    Attributes:
        kind: what it holds.
        path: the folder.
        sha256: of its manifest, and so of all its bytes.
        weights: `random` weights give true latency and meaningless accuracy.
    """

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
        """The manifest, read anew."""
        return _read_manifest(self.path)[0]

    @property
    def size_bytes(self) -> int:
        """Total size of its files."""
        return self.manifest.size_bytes


def hash_file(path: Path) -> str:
    """The sha256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed_files(folder: Path) -> list[str]:
    """Relative POSIX paths of the regular files below `folder`, sorted; the manifest and its signature left out."""
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

    A folder that is already there is swapped with the new one in one system call, so a crash at any moment leaves one of
    the two whole at `destination`. Where the file system cannot swap, the old one is moved aside for the instant in between.

    Args:
        staging: the finished folder, on the same file system as `destination`; it is gone afterwards.
        destination: where the artifact is to live; a folder already there is replaced.
        kind: what the folder holds.
        weights: where its numbers come from.
        layers: their sizes, first to last, where they differ.

    Raises:
        ArtifactError: the folder lacks its kind's main file, or holds a link.
        MachineError: it could not be written (a full disk); the destination is then as it was.
    """
    if not (staging / kind.main_file).is_file():
        raise ArtifactError(f"{staging}: has no {kind.main_file}, which every {kind} artifact holds")
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
        cure = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it a folder that can be written"
        raise MachineError(f"{destination}: cannot be written: {error.strerror}; {cure} and run again") from error
    return Artifact(kind, destination, hashlib.sha256(content).hexdigest(), weights)


def _move_into_place(staging: Path, destination: Path) -> None:
    """Rename `staging` to `destination`; if that fails, what was there is still there."""
    if not destination.is_dir():
        staging.rename(destination)
    elif _exchange(staging, destination):
        # The new artifact stands; what cannot be removed of the old one lies in the staging folder, which is swept anyway.
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
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library older than glibc 2.28, or another system
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    path = folder / MANIFEST
    try:
        # Looked at before it is opened: opening a pipe would wait for its writer.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ArtifactError(f"{path}: not a regular file; make the artifact again")
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; an artifact folder holds a {MANIFEST}: name one made by optbench apply") from error
    if len(content) > MANIFEST_BYTES_MAX:
        raise ArtifactError(f"{path}: larger than {MANIFEST_BYTES_MAX} bytes, which no manifest is; fetch it anew")
    return parse_manifest(content, str(path)), content


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Check a manifest's bytes: its form, and that each name stays inside the folder.

    Args:
        content: the file.
        path: where it comes from, for messages.

    Raises:
        ArtifactError: says what is broken; whatever the bytes are, nothing else is raised.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top"
        # The place may be a hostile file name: a terminal must not obey it.
        raise ArtifactError(f"{path}: broken at {ascii(where)[:200]}: {first['msg']}; make the artifact again") from error
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.name or pure.as_posix() != name or "\\" in name or not name.isprintable():
            raise ArtifactError(f"{path}: lists {ascii(name)[:200]}, which is no plain path inside the folder; do not use this artifact")
    if manifest.to_bytes() != content:
        # A key that stands twice, say: readers differ in which of the two they take.
        raise ArtifactError(f"{path}: is not written as optbench writes a manifest; somebody has edited it: fetch it anew")
    return manifest


def read_manifest_sha256(folder: Path) -> str | None:
    """The sha256 of an artifact's manifest, nothing verified; None where there is no manifest."""
    try:
        return hash_file(folder / MANIFEST)
    except OSError:
        return None


@dataclass(frozen=True)
class Inspection:
    """A folder against its manifest.

    Attributes:
        manifest: what it should hold.
        sha256: of the manifest.
        problems: each file that is missing, extra, truncated or changed, in words that name it.
    """

    manifest: Manifest
    sha256: str
    problems: tuple[str, ...]


def inspect_artifact(folder: Path, *, verify: bool = True) -> Inspection:
    """Compare a folder with its manifest.

    Args:
        folder: the artifact.
        verify: hash every file and compare; without it only presence and sizes are checked.

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
        raise ArtifactError(f"{error.filename or folder}: cannot be read: {error.strerror}; make it readable, or fetch it anew") from error
    problems += [f"{ascii(name)[1:-1]} is not in the manifest" for name in sorted(present - manifest.files.keys())]
    if not problems and manifest.kind.main_file not in manifest.files:
        problems.append(f"its kind is {manifest.kind}, but it holds no {manifest.kind.main_file}")
    return Inspection(manifest, hashlib.sha256(content).hexdigest(), tuple(problems))


def open_artifact(folder: Path, *, verify: bool = True) -> Artifact:
    """Open a sealed folder.

    Args:
        folder: the artifact.
        verify: hash every file and compare; without it only presence and sizes are checked.

    Raises:
        ArtifactError: a file is missing, extra, truncated or changed (each is named), or cannot be read.
    """
    found = inspect_artifact(folder, verify=verify)
    if problems := found.problems:
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise ArtifactError(f"{folder}: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}; make the artifact again")
    return Artifact(found.manifest.kind, folder, found.sha256, found.manifest.weights)


def copy_companions(source: Path, out: Path, *, leave_out: Iterable[str] = ()) -> None:
    """Copy an artifact's small files (tokenizer, configs, modules), without weights, graphs and manifest.

    Args:
        source: an artifact's folder.
        out: the folder that a step is filling.
        leave_out: further relative paths to leave out.
    """
    left_out = set(leave_out)
    for name in _listed_files(source):
        if name.split("/")[0] in ("onnx", "openvino") or name.endswith(WEIGHT_SUFFIXES) or name in left_out:
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
