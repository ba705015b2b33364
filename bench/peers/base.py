"""What a peer is: another way to run the same checkpoint on a CPU, in its own library, set up as that library documents."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue

from optbench.errors import OptbenchError
from optbench.model.checkpoint import describe
from optbench.model.tokenizer import encode_batch, load_tokenizer

__all__ = ["Embed", "Interface", "Peer", "Source", "pool", "tokens_of"]

Interface = Literal["ids", "text"]
Embed = Callable[[Any], NDArray[np.float32]]
"""(input_ids, attention_mask), each (batch, tokens) int64, or for `text` a list of texts; to (batch, dimension)."""


class Source(BaseModel):
    """What every peer starts from.

    Attributes:
        checkpoint: the base: config, safetensors, tokenizer, in the sentence-transformers layout.
        export: its plain fp32 ONNX export by optbench.
        final: the recipe's artifact.
        final_engine: the recipe's engine for it, as JSON.
        texts: calibration texts, none of them from the accuracy task.
        isa: the CPU's largest instruction set, in oneDNN's terms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path
    export: Path
    final: Path
    final_engine: dict[str, JsonValue]
    texts: tuple[str, ...]
    isa: str


@dataclass(frozen=True)
class Peer(ABC):
    """A row of the table. Its methods run in a process of its environment, and import its library there.

    Attributes:
        name: of the row.
        interface: token ids or text. Libraries that take only text are compared with others that are given text.
        precision: of its matrix products.
        how: how it is set up, in a few words.
    """

    environment: ClassVar[str] = "peers"
    libraries: ClassVar[tuple[str, ...]]
    version: ClassVar[int] = 1
    """Raised whenever `build` would leave something else from the same source."""

    name: str
    interface: Interface
    precision: str
    how: str = field(default="")

    @property
    def build_name(self) -> str:
        """Name of the folder that `build` fills; peers with the same name share it."""
        return type(self).__name__

    def build(self, source: Source, out: Path) -> None:  # noqa: B027  # most runtimes build, some run the checkpoint itself
        """Export or quantize into the empty folder `out`. Does nothing for peers that run the checkpoint itself."""

    @abstractmethod
    def open(self, source: Source, built: Path, threads: int) -> Embed:
        """Load what was built and give the function that embeds."""


def pool(hidden: NDArray[np.float32], attention_mask: NDArray[np.int64], folder: Path) -> NDArray[np.float32]:
    """Pool and normalize as the checkpoint in `folder` specifies, for libraries that return hidden states.

    Args:
        hidden: (batch, tokens, hidden).
        attention_mask: (batch, tokens).
        folder: the checkpoint.

    Returns:
        (batch, hidden).
    """
    pooling, normalize = _pooling(folder)
    if pooling == "cls":
        rows = hidden[:, 0]
    else:
        mask = attention_mask[:, :, np.newaxis].astype(np.float32)
        rows = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


_KNOWN: dict[Path, tuple[str, bool]] = {}


def _pooling(folder: Path) -> tuple[str, bool]:
    # Read once: a timed run must not open files.
    if folder not in _KNOWN:
        description = describe(folder)
        _KNOWN[folder] = (description.pooling, description.normalize)
    return _KNOWN[folder]


def tokens_of(folder: Path, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each text's ids and mask, both (1, tokens), from the checkpoint's tokenizer, for calibration."""
    tokenizer = load_tokenizer(folder)
    return [encode_batch(tokenizer, [text]) for text in texts]


class PeerError(OptbenchError):
    """A peer cannot run here; its row shows the message."""
