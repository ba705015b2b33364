"""A model on disk that is never changed again: sealed, hashed, verified before use.

Every artifact, of any kind, is a folder in the sentence-transformers layout: the tokenizer, `config.json`, `modules.json`
and the other small files lie at its top, and the weights where that kind keeps them:

    checkpoint   model.safetensors
    onnx         onnx/model.onnx (+ onnx/model.onnx_data when the weights are external)
    openvino     openvino/openvino_model.xml + .bin

`manifest.json` lists every file with its size and sha256; the artifact's own sha256 is that of the manifest's bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from optbench.errors import ArtifactError, MachineError

__all__ = [
    "MANIFEST",
    "Artifact",
    "Kind",
    "Manifest",
    "Weights",
    "copy_companions",
    "hash_file",
    "open_artifact",
    "read_manifest_sha256",
    "seal",
]

MANIFEST = "manifest.json"
# A manifest names tens of files; the bound keeps a hostile one from being read into memory.
MANIFEST_BYTES_MAX = 4 * 1024 * 1024

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


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """The list of an artifact's files, and where its weights come from.

    Schema 1: schema_version, kind, weights, files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    kind: Kind
    weights: Weights
    files: dict[str, _File]

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
    """Relative POSIX paths of the regular files below `folder`, sorted; the manifest left out."""
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(f"{path}: a link; an artifact holds regular files only: replace it with the file itself")
        if path.is_file():
            names.append(path.relative_to(folder).as_posix())
    return sorted(name for name in names if name != MANIFEST)


def seal(staging: Path, destination: Path, kind: Kind, weights: Weights) -> Artifact:
    """Hash a finished folder, write its manifest and move it into place in one rename.

    Args:
        staging: the finished folder, on the same file system as `destination`; it is gone afterwards.
        destination: where the artifact is to live; a folder already there is replaced.
        kind: what the folder holds.
        weights: where its numbers come from.

    Raises:
        ArtifactError: the folder lacks its kind's main file, or holds a link.
        MachineError: it could not be written (a full disk); the destination is then as it was.
    """
    if not (staging / kind.main_file).is_file():
        raise ArtifactError(f"{staging}: has no {kind.main_file}, which every {kind} artifact holds")
    manifest = Manifest(
        kind=kind,
        weights=weights,
        files={
            name: _File(sha256=hash_file(staging / name), size_bytes=(staging / name).stat().st_size) for name in _listed_files(staging)
        },
    )
    content = manifest.to_bytes()
    try:
        with (staging / MANIFEST).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            shutil.rmtree(destination)
        staging.rename(destination)
    except OSError as error:
        raise MachineError(f"{destination}: cannot be written: {error.strerror}; free some space and run again") from error
    return Artifact(kind, destination, hashlib.sha256(content).hexdigest(), weights)


def _read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise ArtifactError(f"{path}: larger than {MANIFEST_BYTES_MAX} bytes, which no manifest is; fetch it anew")
        content = path.read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; an artifact folder holds a {MANIFEST}: name one made by optbench apply") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top"
        raise ArtifactError(f"{path}: broken at {where}: {first['msg']}; make the artifact again") from error
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
            raise ArtifactError(f"{path}: lists {name!r}, which points outside the folder; do not use this artifact")
    return manifest, content


def read_manifest_sha256(folder: Path) -> str | None:
    """The sha256 of an artifact's manifest, nothing verified; None where there is no manifest."""
    try:
        return hash_file(folder / MANIFEST)
    except OSError:
        return None


def open_artifact(folder: Path, *, verify: bool = True) -> Artifact:
    """Open a sealed folder.

    Args:
        folder: the artifact.
        verify: hash every file and compare; without it only presence and sizes are checked.

    Raises:
        ArtifactError: a file is missing, extra, truncated or changed; each is named.
    """
    manifest, content = _read_manifest(folder)
    problems = []
    present = set(_listed_files(folder))
    for name, entry in manifest.files.items():
        path = folder / name
        if name not in present:
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry.size_bytes:
            problems.append(f"{name} has {path.stat().st_size} bytes, not {entry.size_bytes}")
        elif verify and hash_file(path) != entry.sha256:
            problems.append(f"{name} has changed since it was sealed")
    problems += [f"{name} is not in the manifest" for name in sorted(present - manifest.files.keys())]
    if problems:
        raise ArtifactError(f"{folder}: {'; '.join(problems)}; make the artifact again")
    if manifest.kind.main_file not in manifest.files:
        raise ArtifactError(f"{folder}: a {manifest.kind} artifact without {manifest.kind.main_file}; make it again")
    return Artifact(manifest.kind, folder, hashlib.sha256(content).hexdigest(), manifest.weights)


def copy_companions(source: Path, out: Path, *, leave_out: Iterable[str] = ()) -> None:
    """Copy an artifact's small files (tokenizer, configs, modules), without weights, graphs and manifest.

    Args:
        source: an artifact's folder.
        out: the folder that a step is filling.
        leave_out: further relative paths to leave out.
    """
    weight_files = {MANIFEST, *leave_out}
    for name in _listed_files(source):
        is_weight = name.split("/")[0] in ("onnx", "openvino") or name.endswith((".safetensors", ".safetensors.index.json"))
        if is_weight or name in weight_files:
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
