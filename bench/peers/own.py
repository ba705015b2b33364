"""optbench's own artifacts, as rows of the comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import TypeAdapter

from bench.peers.base import Embed, Peer, Source
from optbench.artifact.folder import open_artifact
from optbench.encoder import load
from optbench.engines import Engine
from optbench.engines.onnxruntime import OnnxRuntime
from optbench.engines.openvino import OpenVino

__all__ = ["Artifact", "OnnxRuntimeExport", "OpenVinoExport"]


@dataclass(frozen=True)
class Artifact(Peer):
    """What the recipe makes."""

    libraries: ClassVar[tuple[str, ...]] = ("openvino", "onnxruntime", "tokenizers")

    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Open it with the recipe's engine."""
        engine: Engine = TypeAdapter(Engine).validate_python(source.final_engine)
        encoder = load(source.final, engine, threads=threads)

        def encode(texts: Sequence[str]) -> Any:
            return encoder.encode(list(texts))

        return encode if self.interface == "text" else lambda tokens: encoder.embed(*tokens)


@dataclass(frozen=True)
class _Export(Peer):
    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Open the plain fp32 export: what the speed-ups of records are over."""
        session = self._engine(threads).open(open_artifact(source.export, verify=False))
        return lambda tokens: session.embed(*tokens)

    def _engine(self, threads: int) -> Engine:
        raise NotImplementedError


@dataclass(frozen=True)
class OnnxRuntimeExport(_Export):
    """The plain fp32 export in ONNX Runtime."""

    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def _engine(self, threads: int) -> Engine:
        return OnnxRuntime(threads=threads)


@dataclass(frozen=True)
class OpenVinoExport(_Export):
    """The plain fp32 export in OpenVINO, computed in fp32."""

    libraries: ClassVar[tuple[str, ...]] = ("openvino",)

    def _engine(self, threads: int) -> Engine:
        return OpenVino(threads=threads)
