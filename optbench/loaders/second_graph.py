"""A second graph beside an artifact's own, so that loaders of either format take the one folder.

sentence-transformers and optimum-intel read OpenVINO IR from `openvino/`, fastembed and text-embeddings-inference ONNX from
`onnx/`. What is added is not what was measured: the folder's card says so, and its records stay those of its own graph.
"""

import shutil
import tempfile
from pathlib import Path

from optbench.artifact.folder import Artifact, Kind, open_artifact, seal
from optbench.errors import ArtifactError, MachineError
from optbench.machine.cpu import read_machine
from optbench.machine.disk import free_disk, full_disk_errors
from optbench.steps import ConvertOpenvino
from optbench.steps.base import StepContext

__all__ = ["extend"]

CARD = "README.md"
# What makes two artifacts the same model: its tokens, and how they are pooled.
SAME = ("tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")


def extend(folder: Path, output: Path, *, other: Path | None = None) -> Artifact:
    """Copy an artifact, with a graph of the other format added.

    Args:
        folder: an ONNX or OpenVINO artifact.
        output: where the copy goes; must not be there yet.
        other: an artifact of the other format and the same model, whose graph is added. Left out, an ONNX graph is converted.

    Raises:
        ArtifactError: there is nothing to add, or `other` is another model.
        StepError: the ONNX graph holds operators that OpenVINO does not know.
        MachineError: the disk is full, or `output` is there.
    """
    artifact = open_artifact(folder)
    if artifact.kind is Kind.CHECKPOINT:
        raise ArtifactError(f"{folder}: is a checkpoint, which has no graph; extend what optbench apply exported")
    if output.exists():
        raise MachineError(f"{output}: is there already; name another folder")
    added = Kind.OPENVINO if artifact.kind is Kind.ONNX else Kind.ONNX
    if (folder / added.main_file).is_file():
        raise ArtifactError(f"{folder}: has {added.main_file} already")
    if other is None and added is Kind.ONNX:
        raise ArtifactError(f"{folder}: OpenVINO IR cannot be turned into ONNX; name an ONNX artifact of this model with --with")
    second = None if other is None else _check_other(artifact, other, added)
    output.parent.mkdir(parents=True, exist_ok=True)
    wanted = 2 * artifact.size_bytes if second is None else artifact.size_bytes + second.size_bytes
    free_disk(output.parent, wanted, f"extending {folder}")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent, ignore_cleanup_errors=True) as staging:
        out, scratch = Path(staging) / "out", Path(staging) / "scratch"
        with full_disk_errors(out.parent):
            for name in artifact.manifest.files:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, out / name)
            if second is None:
                scratch.mkdir()
                converted = Path(staging) / "converted"
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
                        f"{artifact.kind.main_file}. The figures above are not of it.\n"
                    )
        return seal(out, output, artifact.kind, artifact.weights)


def _check_other(artifact: Artifact, folder: Path, wanted: Kind) -> Artifact:
    other = open_artifact(folder)
    if other.kind is not wanted:
        raise ArtifactError(f"{folder}: is {other.kind}, {wanted} is wanted beside {artifact.kind}")
    if other.weights != artifact.weights:
        raise ArtifactError(f"{folder}: has {other.weights} weights, {artifact.path} {artifact.weights} ones; extend with the same model")
    mine, its = artifact.manifest.files, other.manifest.files
    different = [name for name in SAME if mine.get(name) != its.get(name)]
    if different:
        raise ArtifactError(f"{folder}: has another {', '.join(different)} than {artifact.path}; extend with the same model")
    return other
