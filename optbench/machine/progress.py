"""How long work says how far it is: the one callback type that every room passes on."""

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, float | None], None]
"""Called with a phrase and the share done in 0..1, or None where the share is unknown."""


def silent(message: str, share: float | None) -> None:
    """Report nothing."""
