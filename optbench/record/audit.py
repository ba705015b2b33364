"""Audit of an exported folder: integrity and safety, without running the model.

Sizes are checked before any file is read, the manifest before the other files, and no engine opens a graph.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from optbench.artifact.file_types import ARTIFACT_WEIGHTS, is_refused
from optbench.artifact.folder import inspect_artifact
from optbench.artifact.graph_safety import onnx_problems, openvino_problems
from optbench.artifact.manifest import MANIFEST, SIGNATURE, Kind, Manifest, Weights
from optbench.errors import ArtifactError, BaseModelError, RecordError
from optbench.machine.frozen import Frozen
from optbench.model.checkpoint import describe, read_json
from optbench.record.record import Record, read_record

__all__ = ["RECORDS", "Audit", "audit", "matching_record", "measured_sha256", "name_problems"]

RECORDS = "records"
# Files other than weights and graphs: the largest, multilingual tokenizers and records, have tens of megabytes.
SMALL_BYTES_MAX = 256 * 1024 * 1024
# Written after measuring, so not part of what was measured.
NOT_MEASURED = ("README.md", "engine.json", f"{RECORDS}/")


class Audit(Frozen):
    """The result of an audit.

    Attributes:
        sha256: of the manifest, which covers all files.
        kind: of the artifact; None if the manifest cannot be read.
        weights: `real`, or `random` with meaningless embeddings.
        measured: name of the newest record that measured exactly these bytes; None if there is none.
        signed: whether the manifest has a signature file; verifying it takes a public key.
        problems: one message per problem, with the file; empty if there are none.
    """

    path: str
    sha256: str | None = None
    kind: Kind | None = None
    weights: Weights | None = None
    size_bytes: int = 0
    files: int = 0
    measured: str | None = None
    signed: bool = False
    problems: tuple[str, ...]


def audit(folder: Path) -> Audit:
    """Check every byte against the manifest, and that the files are safe to open.

    Problems of the folder are returned in `problems`, not raised.
    """
    try:
        found = inspect_artifact(folder)
    except ArtifactError as error:
        return Audit(path=str(folder), problems=(str(error),))
    manifest = found.manifest
    problems = [*found.problems, *name_problems(manifest)]
    measured = None
    # Only files that match the manifest are parsed.
    if not problems:
        problems += _content_problems(folder, manifest)
        record = None
        try:
            record = matching_record(folder, manifest)
        except RecordError as error:
            problems.append(str(error))
        measured = record.file_name if record else None
    return Audit(
        path=str(folder),
        sha256=found.sha256,
        kind=manifest.kind,
        weights=manifest.weights,
        size_bytes=manifest.size_bytes,
        files=len(manifest.files),
        measured=measured,
        signed=(folder / SIGNATURE).is_file(),
        problems=tuple(problems),
    )


def name_problems(manifest: Manifest) -> list[str]:
    """Files in a manifest that no artifact may contain: programs, pickles, archives, oversized small files.

    Uses only the manifest, so it can run before any file is downloaded or read.
    """
    problems = []
    for name, entry in manifest.files.items():
        if is_refused(name):
            problems.append(f"{name}: programs, pickles and archives are not allowed in an artifact")
        elif PurePosixPath(name).suffix.lower() not in ARTIFACT_WEIGHTS and entry.size_bytes > SMALL_BYTES_MAX:
            problems.append(f"{name} has {entry.size_bytes} bytes; expected at most {SMALL_BYTES_MAX} for a file without weights")
        elif name in (MANIFEST, SIGNATURE):
            problems.append(f"{name}: must not be listed in the manifest")
    folded = [name.casefold() for name in manifest.files]
    duplicates = sorted({name for name in folded if folded.count(name) > 1})
    problems += [f"{name}: duplicate name but for upper and lower case, which some file systems cannot distinguish" for name in duplicates]
    return problems


def _content_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name in manifest.files:
        path = folder / name
        if name.endswith(".onnx"):
            yield from (f"{name}: {problem}" for problem in onnx_problems(path))
        elif name.startswith("openvino/") and name.endswith(".xml"):
            yield from (f"{name}: {problem}" for problem in openvino_problems(path))
    try:
        # Also checks that modules.json names only sentence-transformers' own modules.
        describe(folder)
        for name in ("config.json", "tokenizer_config.json"):
            document = read_json(folder / name) if (folder / name).is_file() else {}
            if isinstance(document, dict) and document.get("auto_map"):
                yield f"{name}: auto_map names code to run, which is not allowed in an artifact"
    except BaseModelError as error:
        yield str(error)


def measured_sha256(manifest: Manifest) -> str:
    """The hash of the measured artifact: the exported files without records, card, engine.json and other engines' graphs."""
    left_out = (*NOT_MEASURED, *(f"{kind.weight_folder}/" for kind in (Kind.ONNX, Kind.OPENVINO) if kind is not manifest.kind))
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith(left_out)}
    return hashlib.sha256(manifest.model_copy(update={"files": files}).to_bytes()).hexdigest()


def matching_record(folder: Path, manifest: Manifest) -> Record | None:
    """The newest record whose last point measured exactly these bytes; None if there is none.

    Raises:
        RecordError: a record cannot be read.
    """
    sha256 = measured_sha256(manifest)
    names = sorted((name for name in manifest.files if name.startswith(f"{RECORDS}/") and name.endswith(".json")), reverse=True)
    for record in (read_record(folder / name) for name in names):
        if record.final.artifact_sha256 == sha256:
            return record
    return None
