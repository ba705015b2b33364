"""Text of a record, which may come from a stranger, as text: nothing in it steers a terminal or becomes markdown."""

import re
import unicodedata

__all__ = ["inline", "printable"]

# Unicode's explicit embeddings, overrides and isolates, with which text can pass for another.
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What begins an HTML element, code, and a link or picture with a target of its own.
MARKUP = re.compile(r"<(?=[A-Za-z/!?])|`|\[(?=[^\]]*\]\s*[(\[:])")


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor, color it or turn what stands beside it around: records may come from strangers."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    return char != "\n" and (unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in BIDIRECTIONAL)


def inline(text: str) -> str:
    """Text for markdown that stays text, on one line: a record may come from a stranger, and markdown takes HTML and links."""
    return MARKUP.sub(lambda found: "&lt;" if found[0] == "<" else f"\\{found[0]}", " ".join(printable(text).split()))
