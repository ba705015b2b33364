"""Add a graph in the other format to an artifact, so that loaders of both formats can read one folder.

sentence-transformers and optimum-intel read OpenVINO IR from `openvino/`; fastembed and text-embeddings-inference read ONNX from
`onnx/`. The added graph was not measured: the card says so, and the records remain those of the original graph.
"""

import shutil
from pathlib import Path

from optbench.artifact.folder import Artifact, open_artifact, seal
from optbench.artifact.manifest import Kind
from optbench.errors import ArtifactError, MachineError
from optbench.machine.cpu import read_machine
from optbench.machine.disk import free_disk, full_disk_errors
from optbench.machine.staging import staging_folder, sweep_staging
from optbench.steps.base import StepContext
from optbench.steps.convert_openvino import ConvertOpenvino

__all__ = ["extend"]

CARD = "README.md"
# Two artifacts are the same model if these files are equal: the tokenizer, the shape, and the pooling.
SAME_MODEL_FILES = ("tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")


def extend(folder: Path, output: Path, *, other: Path | None = None) -> Artifact:
    """Copy an artifact to the new folder `output` and add a graph in the other format.

    The graph is that of `other`, an artifact of the same model; by default, the ONNX graph is converted to OpenVINO.

    Raises:
        ArtifactError: there is nothing to add, or `other` is another model.
        StepError: the ONNX graph has operators unknown to OpenVINO.
        MachineError: the disk is full, or `output` exists.
    """
    artifact = open_artifact(folder)
    if artifact.kind is Kind.CHECKPOINT:
        raise ArtifactError(f"{folder}: is a checkpoint, which has no graph; extend an artifact that optbench apply exported")
    if output.exists():
        raise MachineError(f"{output}: already exists; choose another folder")
    added = Kind.OPENVINO if artifact.kind is Kind.ONNX else Kind.ONNX
    if (folder / added.main_file).is_file():
        raise ArtifactError(f"{folder}: already has {added.main_file}")
    if other is None and added is Kind.ONNX:
        raise ArtifactError(f"{folder}: OpenVINO IR cannot be converted to ONNX; name an ONNX artifact of this model with --with")
    second = None if other is None else _check_other(artifact, other, added)
    output.parent.mkdir(parents=True, exist_ok=True)
    needed = 2 * artifact.size_bytes if second is None else artifact.size_bytes + second.size_bytes
    free_disk(output.parent, needed, f"extending {folder}")
    prefix = f".{output.name}-extending-"
    sweep_staging(output.parent, prefix)
    with staging_folder(output.parent, prefix) as staging:
        out, scratch = staging / "out", staging / "scratch"
        with full_disk_errors(out.parent):
            for name in artifact.manifest.files:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, out / name)
            if second is None:
                scratch.mkdir()
                converted = staging / "converted"
                converted.mkdir()
                ConvertOpenvino().run(artifact, converted, StepContext(scratch=scratch, machine=read_machine()))
                shutil.move(converted / added.weight_folder, out / added.weight_folder)
                source = f"the graph of `{artifact.kind.main_file}`, converted"
            else:
                shutil.copytree(second.path / added.weight_folder, out / added.weight_folder)
                source = f"the graph of artifact `{second.sha256[:12]}`"
            if (out / CARD).is_file():
                with (out / CARD).open("a", encoding="utf-8") as card:
                    card.write(
                        f"\n## For other loaders\n\n`{added.weight_folder}/` is {source}, for libraries that do not read "
                        f"{artifact.kind.main_file}. The figures above do not apply to it.\n"
                    )
        return seal(out, output, artifact.kind, artifact.weights)


def _check_other(artifact: Artifact, folder: Path, expected: Kind) -> Artifact:
    other = open_artifact(folder)
    if other.kind is not expected:
        raise ArtifactError(f"{folder}: is {other.kind}; expected {expected}, to add to {artifact.kind}")
    if other.weights != artifact.weights:
        raise ArtifactError(
            f"{folder}: has {other.weights} weights, but {artifact.path} has {artifact.weights} ones; extend with the same model"
        )
    files, other_files = artifact.manifest.files, other.manifest.files
    different = [name for name in SAME_MODEL_FILES if files.get(name) != other_files.get(name)]
    if different:
        raise ArtifactError(f"{folder}: differs from {artifact.path} in {', '.join(different)}; extend with the same model")
    return other
