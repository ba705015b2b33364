"""Boxes."""

from typing import Any


def matching_box(machine: object) -> Any:
    """None yet."""
    return None
