"""Engines: each opens an artifact and embeds token ids. The union below is the registry."""

from typing import Annotated

from pydantic import Field

from optbench.artifact.folder import Kind
from optbench.engines.base import BaseEngine, Session
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino
from optbench.engines.torch import Torch

__all__ = ["BaseEngine", "Engine", "OnnxRuntime", "OpenVino", "Session", "Torch", "default_engine"]

Engine = Annotated[OnnxRuntime | OpenVino | Torch, Field(discriminator="engine")]


def default_engine(kind: Kind) -> Engine:
    """The engine made for a kind of artifact, with its default options."""
    defaults: dict[Kind, type[OnnxRuntime | OpenVino | Torch]] = {
        Kind.CHECKPOINT: Torch,
        Kind.ONNX: OnnxRuntime,
        Kind.OPENVINO: OpenVino,
    }
    return defaults[kind]()
