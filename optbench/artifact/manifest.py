"""The manifest of an artifact: its kind, and the size and sha256 of every file."""

import json
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError

from optbench.errors import ArtifactError
from optbench.machine.frozen import Frozen

__all__ = ["MANIFEST", "MANIFEST_BYTES_MAX", "SIGNATURE", "FileEntry", "Kind", "LayerSize", "Manifest", "Weights", "parse_manifest"]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.minisig"
# A manifest lists tens of files; the bound keeps a hostile one out of memory.
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
        return {"checkpoint": "model.safetensors", "onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}[self.value]


class FileEntry(Frozen):
    """A file as the manifest lists it."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class LayerSize(Frozen):
    """One layer of a pruned body."""

    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=1)


class Manifest(Frozen):
    """The files of an artifact, and where its weights come from.

    Schema 1: schema_version, kind, weights, files; layers, where they differ.
    """

    schema_version: Literal[1] = 1
    kind: Kind
    weights: Weights
    files: dict[str, FileEntry]
    # Left out when empty, so that the manifest of a body whose layers are alike keeps its bytes and hash.
    layers: tuple[LayerSize, ...] = Field(default=(), exclude_if=lambda layers: not layers)

    @property
    def size_bytes(self) -> int:
        """Total size of the listed files."""
        return sum(entry.size_bytes for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """The canonical JSON that is hashed and written."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Parse a manifest, and check that every name stays inside the folder; messages name `path`.

    Raises:
        ArtifactError: says what is broken; no bytes raise anything else.
    """
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top"
        # The key may be a hostile file name: its control characters must not reach a terminal.
        raise ArtifactError(f"{path}: broken at {ascii(where)[:200]}: {first['msg']}; make the artifact again") from error
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.name or pure.as_posix() != name or "\\" in name or not name.isprintable():
            raise ArtifactError(f"{path}: lists {ascii(name)[:200]}, which is not a plain path inside the folder; do not use this artifact")
    if manifest.to_bytes() != content:
        # Such as a duplicate key: readers differ in which of the two they use.
        raise ArtifactError(f"{path}: differs from how optbench writes a manifest, so it was edited; download it again")
    return manifest
