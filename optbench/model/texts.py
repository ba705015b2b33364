"""Texts from callers: any iterable of str as a list, and one clear error for what cannot be tokenized."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["as_texts", "check_text"]

# Of a bad text, an error shows this many characters on each side of the fault.
SHOWN = 20


def as_texts(texts: Iterable[str]) -> list[str]:
    """The texts of a list, tuple, set, generator, numpy array, pandas Series or any other iterable, in its order.

    Raises:
        TypeError: not an iterable of str; names the type, or the index and type of the first item that is not a str.
        ValueError: a text that UTF-8 cannot encode; names its index and shows it.
    """
    # Iterating over these gives something other than the caller's texts: characters, integers, keys or column names.
    is_mapping = isinstance(texts, Mapping) or getattr(texts, "ndim", 1) != 1
    if texts is None or is_mapping or isinstance(texts, str | bytes | bytearray | memoryview) or not isinstance(texts, Iterable):
        raise TypeError(f"texts: expected a str or an iterable of str, found {_type_name(texts)}{_cure(texts)}")
    listed = list(texts)
    for index, text in enumerate(listed):
        check_text(text, f"texts[{index}]")
    return listed


def check_text(text: str, name: str) -> None:
    """Refuse what is not a str, or has a lone surrogate, which no tokenizer takes; same errors as `as_texts`."""
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected str, found {_type_name(text)}{_cure(text)}")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = error.start
        shown = text[max(0, place - SHOWN) : place + SHOWN]
        raise ValueError(
            f"{name} has a lone surrogate, U+{ord(text[place]):04X}, at character {place}, which is not Unicode text: ...{shown!a}...; "
            "decode its bytes again with errors='replace'"
        ) from error


def _type_name(value: Any) -> str:
    kind = type(value)
    dimensions = getattr(value, "ndim", None)
    shape = f" of {dimensions} dimensions" if isinstance(dimensions, int) and dimensions != 1 else ""
    return f"{kind.__name__}{shape}"


def _cure(value: Any) -> str:
    match value:
        case bytes() | bytearray() | memoryview():
            return "; decode it first"
        case Mapping():
            return "; pass its values"
        case float() if value != value:  # noqa: PLR0124  # NaN, which pandas puts where a text is missing
            return " (nan); fill in or leave out missing texts"
    return ""
