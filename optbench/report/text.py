"""Escape the text of a record, which may be untrusted, for terminals and markdown."""

import re
import unicodedata

__all__ = ["inline", "printable"]

# Unicode's explicit embeddings, overrides and isolates, which can disguise text.
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Starts of HTML elements, code, links and images.
MARKUP = re.compile(r"<(?=[A-Za-z/!?])|`|\[(?=[^\]]*\]\s*[(\[:])")


def printable(text: str) -> str:
    """Replace control characters, which could move a terminal's cursor, color it or reorder text."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    return char != "\n" and (unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in BIDIRECTIONAL)


def inline(text: str) -> str:
    """Escape text for markdown, on one line, so that it cannot contain HTML or links."""
    return MARKUP.sub(lambda found: "&lt;" if found[0] == "<" else f"\\{found[0]}", " ".join(printable(text).split()))
