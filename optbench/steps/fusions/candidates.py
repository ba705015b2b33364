"""Graphs that differ in little, written as artifact folders that share their weights."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.artifact import Kind, copy_companions
from optbench.errors import MachineError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["INLINE_BYTES_MAX", "Candidates", "save_model", "weight_bytes"]

# Above this the weights go to a data file: protobuf stops at 2 GB, and an engine maps a data file where it would copy a protobuf.
INLINE_BYTES_MAX = 100 * 1000 * 1000
# Shapes and scalars stay in the graph, where engines fold them.
EXTERNAL_BYTES_MIN = 1024


def _constants(model: "ir.Model") -> "Iterator[tuple[ir.Value, ir.TensorProtocol]]":
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value


def weight_bytes(model: "ir.Model") -> int:
    """What the graph's constants take on disk."""
    return sum(tensor.nbytes for _, tensor in _constants(model))


def save_model(model: "ir.Model", folder: Path) -> None:
    """Write an artifact's graph, tensor by tensor, with `model.onnx_data` beside it when the weights are large.

    Raises:
        MachineError: the disk is full.
    """
    import onnx_ir as ir

    path = folder / Kind.ONNX.main_file
    external = f"{path.name}_data" if weight_bytes(model) > INLINE_BYTES_MAX else None
    with _disk(folder):
        path.parent.mkdir()
        ir.save(model, path, external_data=external, size_threshold_bytes=EXTERNAL_BYTES_MIN)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"{folder}: the graph cannot be written: {error.strerror}; free some space and run again") from error


class Candidates:
    """Writes graphs of one model below `scratch`, each weight once.

    A tensor goes to a data file of the first folder whose graph has it, and later folders hold a hard link to that file: a
    location must lie inside the graph's own folder, and a symbolic link out of it is refused. The source's data file is not
    linked but written anew, since onnx refuses to load any file that has a second name, and the source may be open elsewhere.
    """

    def __init__(self, companions: Path, scratch: Path) -> None:
        self.companions = companions
        self.scratch = scratch

    def write(self, model: "ir.Model", name: str) -> Path:
        """Write `model` as the folder `name`; large tensors of `model` then are mapped from there.

        Raises:
            MachineError: the disk is full.
        """
        import onnx_ir as ir

        folder = self.scratch / name
        path = folder / Kind.ONNX.main_file
        with _disk(folder):
            path.parent.mkdir(parents=True)
            copy_companions(self.companions, folder)
            if weight_bytes(model) > INLINE_BYTES_MAX:
                self._write_new_tensors(model, path.parent, f"{name}.onnx_data")
                self._link_old_tensors(model, path.parent)
            ir.save(model, path)
        return folder

    def _is_old(self, tensor: "ir.TensorProtocol") -> bool:
        import onnx_ir as ir

        return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).is_relative_to(self.scratch)

    def _write_new_tensors(self, model: "ir.Model", folder: Path, location: str) -> None:
        import onnx_ir as ir

        new = [value for value, tensor in _constants(model) if tensor.nbytes >= EXTERNAL_BYTES_MIN and not self._is_old(tensor)]
        tensors = [value.const_value for value in new if value.const_value is not None]
        for value, tensor in zip(new, ir.external_data.convert_tensors_to_external(tensors, folder, location), strict=True):
            value.const_value = tensor

    def _link_old_tensors(self, model: "ir.Model", folder: Path) -> None:
        import onnx_ir as ir

        for path in sorted({Path(tensor.path) for _, tensor in _constants(model) if isinstance(tensor, ir.ExternalTensor)}):
            if path.parent == folder:
                continue
            try:
                os.link(path, folder / path.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, folder / path.name)
