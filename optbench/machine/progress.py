"""The callback through which long work reports progress, the same in every room."""

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, float | None], None]
"""Called with a phrase and the share done, 0 to 1; None where the share is unknown."""


def silent(message: str, share: float | None) -> None:
    """Report nothing."""
