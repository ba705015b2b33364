"""An artifact's ONNX file, read and written tensor by tensor."""

from typing import TYPE_CHECKING

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import MachineError, StepError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

__all__ = ["EXTERNAL_BYTES_MIN", "INLINE_BYTES_MAX", "read_onnx", "weight_bytes", "write_onnx"]

# Above this, weights go to model.onnx_data: protobuf's limit is 2 GB, and an engine maps a data file but copies a protobuf.
INLINE_BYTES_MAX = 100 * 1000 * 1000
# Shapes and scalars stay in the graph, where engines fold them.
EXTERNAL_BYTES_MIN = 1024


def read_onnx(source: Artifact) -> "ir.Model":
    """Read an artifact's graph; external weights stay in their file and are mapped when they are read."""
    import onnx_ir as ir

    try:
        return ir.load(source.main_file)
    except Exception as error:  # protobuf and onnx_ir have their own exception classes for a broken file
        raise StepError(f"{source.main_file}: cannot be read as ONNX: {error}; make the artifact again") from error


def weight_bytes(model: "ir.Model") -> int:
    """Size of the graph's constants on disk."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def write_onnx(model: "ir.Model", out: "Path") -> bool:
    """Write an artifact's graph, one tensor in memory at a time. Large weights go to `model.onnx_data`; returns whether they did."""
    import onnx_ir as ir

    path = out / Kind.ONNX.main_file
    external = weight_bytes(model) > INLINE_BYTES_MAX
    if not external:
        # Remaining weights of a large source would still point to its data file.
        ir.external_data.load_to_model(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ir.save(model, path, external_data=f"{path.name}_data" if external else None, size_threshold_bytes=EXTERNAL_BYTES_MIN)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror}; free some space and run again") from error
    return external
