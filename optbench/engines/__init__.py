"""Engines: the runtimes that execute an artifact.

In: an artifact and an engine's options. Out: a `Session`, which turns token ids into embeddings, or `Streams`, which
does it for many batches at once.

`ENGINES` is the registry.
"""

from typing import Annotated

from optbench.artifact.manifest import Kind
from optbench.engines.base import BaseEngine, Session, Streams
from optbench.machine.registry import Registry

__all__ = ["ENGINES", "BaseEngine", "Engine", "Session", "Streams", "default_engine"]

ENGINES = Registry[BaseEngine]("engine", __name__, {"onnxruntime": "OnnxRuntime", "openvino": "OpenVino", "torch": "Torch"})
Engine = Annotated[BaseEngine, ENGINES]


def default_engine(kind: Kind) -> Engine:
    """The native engine for a kind of artifact, with default options."""
    return ENGINES.get({Kind.CHECKPOINT: "torch", Kind.ONNX: "onnxruntime", Kind.OPENVINO: "openvino"}[kind])()
