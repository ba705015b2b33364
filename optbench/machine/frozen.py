"""The base class of everything that optbench reads, records or passes between processes."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Frozen"]


class Frozen(BaseModel):
    """A pydantic model that never changes and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
