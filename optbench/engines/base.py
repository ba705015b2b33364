"""What an engine is: options that open an artifact, and a session that embeds."""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optbench.artifact.folder import Artifact, Kind
from optbench.errors import EngineError
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen

__all__ = ["BaseEngine", "Session", "Threads"]

Threads = Annotated[int, Field(ge=1, le=1024)]


class Session(ABC):
    """An opened model. Not thread-safe unless the engine says so."""

    @abstractmethod
    def embed(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed a batch.

        Args:
            input_ids: (batch, tokens), batch and tokens at least 1.
            attention_mask: (batch, tokens), 1 for a token, 0 for padding; at least one 1 a row.

        Returns:
            (batch, dimension), pooled, and normalized if the model normalizes.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory. Calling it twice is harmless."""


class BaseEngine(Frozen, ABC):
    """An engine's options. Subclasses add `engine: Literal["name"]`, the tag of the union in `engines/__init__.py`."""

    opens: ClassVar[frozenset[Kind]]

    threads: Threads | None = Field(default=None, description="Intra-op threads; what affinity and cgroup quota allow when left out.")

    @abstractmethod
    def open(self, artifact: Artifact) -> Session:
        """Load an artifact.

        Raises:
            EngineError: the artifact is of another kind, or the engine refuses it; the engine's own words are in the message.
        """

    @property
    @abstractmethod
    def precision(self) -> str:
        """The arithmetic this engine is asked for, for tables: `fp32`, `bf16`."""

    @abstractmethod
    def environment(self, isa: Isa) -> dict[str, str]:
        """The variables under which a fresh process runs this engine as a CPU with `isa` would.

        Raises:
            EngineError: the engine has no such switch, or this CPU lacks the set.
        """

    def check_opens(self, artifact: Artifact) -> None:
        """Refuse an artifact of a kind this engine cannot open."""
        if artifact.kind not in self.opens:
            wanted = ", ".join(sorted(self.opens))
            raise EngineError(f"{artifact.path}: is {artifact.kind}, but {type(self).__name__} opens {wanted}; name another engine")
