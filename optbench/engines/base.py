"""The base classes: an engine is a set of options that opens an artifact; a session is an open model."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.errors import EngineError
from optbench.machine.cpu import Isa
from optbench.machine.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BaseEngine", "Session", "Streams", "Threads"]

Threads = Annotated[int, Field(ge=1, le=1024)]


class Session(ABC):
    """An open model. Not thread-safe unless the engine says so."""

    @abstractmethod
    def embed(self, input_ids: "NDArray[np.int64]", attention_mask: "NDArray[np.int64]") -> "NDArray[np.float32]":
        """Embed a batch; returns (batch, dimension), pooled, and normalized if the model normalizes.

        Args:
            input_ids: (batch, tokens), batch and tokens at least 1.
            attention_mask: (batch, tokens), 1 for a token, 0 for padding; at least one 1 per row.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory. May be called more than once."""


class Streams(ABC):
    """An open model that runs several batches at once, each on its share of the threads. Thread-safe."""

    @abstractmethod
    def embed_batches(self, batches: "Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]") -> "Iterator[NDArray[np.float32]]":
        """Embed batches; yields the rows of each, in order.

        Args:
            batches: input_ids and attention_mask, as `Session.embed` takes them; read as streams become free.

        Raises:
            EngineError: as `Session.embed`.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model's memory once the batches that run are done. May be called more than once."""


class BaseEngine(Frozen, ABC):
    """An engine's options. Subclasses narrow `engine` to their name, as `engine: Literal["openvino"] = "openvino"`."""

    if TYPE_CHECKING:
        engine: str = ""  # for type checkers; a field here would change the order of every subclass's fields
    opens: ClassVar[frozenset[Kind]]

    threads: Threads | None = Field(
        default=None, description="Intra-op threads. Default: what the CPU affinity and the cgroup quota allow."
    )

    @abstractmethod
    def open(self, artifact: Artifact) -> Session:
        """Load an artifact.

        Raises:
            EngineError: the engine cannot open this kind of artifact, its library refuses this one (the message quotes the library), its
                inputs and outputs are not those of `engines.contract`, or this machine cannot honor an option.
        """

    def open_streams(self, artifact: Artifact) -> Streams | None:
        """Load an artifact for many texts; None where a session serves as many per second. Same errors as `open`.

        This is a second copy of the model in memory, beside that of a session.
        """
        return None

    def reference(self, _artifact: Artifact) -> Self:
        """The engine that computes the artifact's vectors as `engines.contract` defines them; itself if it compiles one shape only."""
        return self

    @property
    @abstractmethod
    def precision(self) -> str:
        """The requested floating-point precision, as tables show it: `fp32`, `bf16`."""

    @abstractmethod
    def isa_variables(self, isa: Isa) -> dict[str, str]:
        """The environment variables that limit this engine to `isa` in a new process.

        Raises:
            EngineError: the engine has no such switch, or this CPU lacks the instruction set.
        """

    def refusal(self, isa: Isa) -> str:
        """Why this engine cannot be limited to `isa` here; empty if it can."""
        try:
            self.isa_variables(isa)
        except EngineError as error:
            return str(error)
        return ""

    def check_opens(self, artifact: Artifact) -> None:
        """Refuse an artifact of a kind that this engine cannot open."""
        if artifact.kind not in self.opens:
            kinds = ", ".join(sorted(self.opens))
            raise EngineError(f"{artifact.path}: is {artifact.kind}, but {type(self).__name__} opens {kinds}; choose another engine")
