"""Patterns on names: which operations of a graph an option such as `exclude` names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from optbench.errors import StepError

__all__ = ["match_names"]


def match_names(named: Sequence[tuple[str, ...]], patterns: Iterable[str], where: str) -> list[bool]:
    """Which operations a list of shell-style patterns, such as `*.output.dense`, names; upper and lower case differ.

    Raises:
        StepError: a pattern names none. The message begins with `where`, step and key, and lists the closest names.
    """
    matched = [False] * len(named)
    for pattern in patterns:
        hits = [any(fnmatchcase(name, pattern) for name in names) for names in named]
        if not any(hits):
            known = [names[0] for names in named]
            close = get_close_matches(pattern.replace("*", ""), known, n=3, cutoff=0.3) or known[:3]
            raise StepError(
                f"{where}: {pattern!r} matches no operation; the closest are {', '.join(close) or 'none'}: correct it or remove it"
            )
        matched = [old or new for old, new in zip(matched, hits, strict=True)]
    return matched
