"""Engines: the runtimes that execute an artifact.

In: an artifact and an engine's options. Out: a `Session`, which turns token ids into embeddings.

The union `Engine` is the registry.
"""

from typing import Annotated

from pydantic import Field

from optbench.artifact.manifest import Kind
from optbench.engines.base import BaseEngine, Session
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch

__all__ = ["BaseEngine", "Engine", "OnnxRuntime", "OpenVino", "Session", "Torch", "default_engine"]

Engine = Annotated[OnnxRuntime | OpenVino | Torch, Field(discriminator="engine")]


def default_engine(kind: Kind) -> Engine:
    """The native engine for a kind of artifact, with default options."""
    defaults: dict[Kind, type[OnnxRuntime | OpenVino | Torch]] = {
        Kind.CHECKPOINT: Torch,
        Kind.ONNX: OnnxRuntime,
        Kind.OPENVINO: OpenVino,
    }
    return defaults[kind]()
