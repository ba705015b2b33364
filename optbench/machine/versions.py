"""Versions of installed distributions, for cache keys and records."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

__all__ = ["library_versions"]


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions of distributions; `missing` for one that is not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions
