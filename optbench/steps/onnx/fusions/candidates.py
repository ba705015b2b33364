"""Variants of one graph, written as artifact folders that share their weight files."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.artifact.folder import copy_companions
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError
from optbench.steps.onnx import file as onnx_file

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Candidates"]


def _constants(model: "ir.Model") -> "Iterator[tuple[ir.Value, ir.TensorProtocol]]":
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value, value.const_value


class Candidates:
    """Writes graphs of one model to folders in `scratch`, each weight once.

    A tensor goes to a data file in the first folder whose graph has it, and later folders hold a hard link to that file:
    external data must lie in the graph's own folder, and a symbolic link out of it is refused. onnx and onnx-ir refuse to read
    a file with a second hard link, and engines do not: so the source's data file is copied rather than linked, and nothing is
    read back from here.
    """

    def __init__(self, companions: Path, scratch: Path) -> None:
        self.companions = companions
        self.scratch = scratch
        # By the tensor's id; the tensor is kept too, so that no other object can take its id.
        self._written: dict[int, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}

    def write(self, model: "ir.Model", name: str) -> Path:
        """Write `model`, which is not changed, to the folder `name`."""
        import onnx_ir as ir

        folder = self.scratch / name
        path = folder / Kind.ONNX.main_file
        try:
            path.parent.mkdir(parents=True)
            copy_companions(self.companions, folder)
            if onnx_file.weight_bytes(model) > onnx_file.INLINE_BYTES_MAX:
                model = model.clone()
                self._write_new_tensors(model, path.parent, f"{name}.onnx_data")
                self._refer_to_written_tensors(model, path.parent)
            ir.save(model, path)
        except OSError as error:
            raise MachineError(f"{folder}: the graph cannot be written: {error.strerror}; free some space and run again") from error
        return folder

    def _write_new_tensors(self, model: "ir.Model", folder: Path, location: str) -> None:
        import onnx_ir as ir

        new = [
            tensor for _, tensor in _constants(model) if tensor.nbytes >= onnx_file.EXTERNAL_BYTES_MIN and id(tensor) not in self._written
        ]
        if not new:
            return
        written = ir.external_data.convert_tensors_to_external(new, folder, location)
        self._written |= {id(tensor): (tensor, external) for tensor, external in zip(new, written, strict=True)}

    def _refer_to_written_tensors(self, model: "ir.Model", folder: Path) -> None:
        files: set[Path] = set()
        for value, tensor in _constants(model):
            if id(tensor) in self._written:
                external = self._written[id(tensor)][1]
                value.const_value = external
                files.add(Path(external.path))
        for path in sorted(files):
            if path.parent == folder:
                continue
            try:
                os.link(path, folder / path.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, folder / path.name)
