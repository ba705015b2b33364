"""Is an artifact what it says, and safe to open? Everything that can be said of a folder without running it.

Sizes are looked at before anything is read, the manifest before any other file, and no graph is opened by an engine.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from optbench.artifact.folder import MANIFEST, SIGNATURE, Kind, Manifest, Weights, inspect_artifact
from optbench.artifact.graph_safety import onnx_problems, openvino_problems
from optbench.errors import ArtifactError, BaseModelError, RecordError
from optbench.machine.frozen import Frozen
from optbench.model.checkpoint import describe, read_json
from optbench.record.record import Record, read_record

__all__ = ["RECORDS", "Audit", "audit", "matching_record", "measured_sha256", "name_problems"]

RECORDS = "records"
# What is no weights and no graph: the largest, a multilingual tokenizer or a judged task's record, have tens of megabytes.
SMALL_BYTES_MAX = 256 * 1024 * 1024
WEIGHTS = (".onnx", ".onnx_data", ".bin", ".safetensors")
# Programs, pickles, which are programs too, and archives, which are opened by nobody here.
REFUSED = (
    *(".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".js", ".jar"),
    *(".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras", ".mar"),
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".whl"),
)
# What is written beside the measured model, and so is no part of what was measured.
EVIDENCE = ("README.md", "engine.json", f"{RECORDS}/")


class Audit(Frozen):
    """What was found.

    Attributes:
        path: the folder.
        sha256: of the manifest, and so of everything.
        kind: of the artifact; None where the manifest cannot be read.
        weights: `random` weights embed nothing.
        size_bytes: of all files.
        files: how many.
        measured: the name of the newest record whose measurements are of these very bytes; None where there is none.
        signed: whether a signature lies beside the manifest; whose it is takes a public key to say.
        problems: each in words that name the file; none where all is well.
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
    """Check every byte against the manifest, and what the files would have an engine do.

    Never raises for what is wrong with the folder: that is in `problems`.
    """
    try:
        found = inspect_artifact(folder)
    except ArtifactError as error:
        return Audit(path=str(folder), problems=(str(error),))
    manifest = found.manifest
    problems = [*found.problems, *name_problems(manifest)]
    measured = None
    # Only files that are what the manifest says are looked into.
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
    """What a manifest lists that no artifact holds: programs, pickles, archives, small files that are huge.

    Nothing but the manifest is looked at, so this is asked before a file is fetched or read.
    """
    problems = []
    for name, entry in manifest.files.items():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in REFUSED or (suffix == ".bin" and not name.startswith("openvino/")):
            problems.append(f"{name}: a program, a pickle or an archive, which no artifact holds")
        elif suffix not in WEIGHTS and entry.size_bytes > SMALL_BYTES_MAX:
            problems.append(f"{name} has {entry.size_bytes} bytes; {SMALL_BYTES_MAX} is the most for a file that holds no weights")
        elif name in (MANIFEST, SIGNATURE):
            problems.append(f"{name}: lists itself")
    folded = [name.casefold() for name in manifest.files]
    twice = sorted({name for name in folded if folded.count(name) > 1})
    problems += [f"{name}: stands twice, in upper and lower case, which some file systems cannot tell apart" for name in twice]
    return problems


def _content_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for name in manifest.files:
        path = folder / name
        if name.endswith(".onnx"):
            yield from (f"{name}: {problem}" for problem in onnx_problems(path))
        elif name.startswith("openvino/") and name.endswith(".xml"):
            yield from (f"{name}: {problem}" for problem in openvino_problems(path))
    try:
        # Says too that modules.json names sentence-transformers' own modules and no other code.
        describe(folder)
        for name in ("config.json", "tokenizer_config.json"):
            document = read_json(folder / name) if (folder / name).is_file() else {}
            if isinstance(document, dict) and document.get("auto_map"):
                yield f"{name}: auto_map names code to run; an artifact runs none"
    except BaseModelError as error:
        yield str(error)


def measured_sha256(manifest: Manifest) -> str:
    """The hash of the artifact that was measured: the exported files without the evidence and without other engines' graphs."""
    left_out = (*EVIDENCE, *(f"{kind.weight_folder}/" for kind in (Kind.ONNX, Kind.OPENVINO) if kind is not manifest.kind))
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith(left_out)}
    return hashlib.sha256(manifest.model_copy(update={"files": files}).to_bytes()).hexdigest()


def matching_record(folder: Path, manifest: Manifest) -> Record | None:
    """The newest record whose last point is of these very bytes; None where no record is.

    Raises:
        RecordError: a record cannot be read.
    """
    wanted = measured_sha256(manifest)
    names = sorted((name for name in manifest.files if name.startswith(f"{RECORDS}/") and name.endswith(".json")), reverse=True)
    for record in (read_record(folder / name) for name in names):
        if record.final.artifact_sha256 == wanted:
            return record
    return None
