"""The base class of everything that optbench reads, records or passes between processes."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Frozen"]


class Frozen(BaseModel):
    """A pydantic model that never changes and refuses unknown keys."""

    # Validators are built at first use: checking a recipe uses a tenth of the models that it imports.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
