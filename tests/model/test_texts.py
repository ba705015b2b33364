"""Texts of callers: every iterable of str, and a clear refusal of the rest."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from optbench.model.texts import as_texts


def generated() -> Iterator[str]:
    yield from ("red", "blue")


@pytest.mark.parametrize("texts", [["red", "blue"], ("red", "blue"), generated(), np.array(["red", "blue"]), {"red": 1, "blue": 2}.keys()])
def test_any_iterable_of_str_is_taken(texts: Any) -> None:
    assert as_texts(texts) == ["red", "blue"]
    assert as_texts(np.array(["red", "blue"], dtype=object)) == ["red", "blue"]
    assert sorted(as_texts({"red", "blue"})) == ["blue", "red"]


def test_pandas_series_is_taken_and_a_missing_text_in_it_named() -> None:
    pandas = pytest.importorskip("pandas")
    assert as_texts(pandas.Series(["red", "blue"], index=[7, 9])) == ["red", "blue"]
    with pytest.raises(TypeError, match=r"texts\[1\]: expected str, found float \(nan\)"):
        as_texts(pandas.Series(["red", float("nan")], dtype=object))
    with pytest.raises(TypeError, match="found DataFrame of 2 dimensions"):
        as_texts(pandas.DataFrame({"red": ["a"]}))


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (None, "NoneType"),
        (b"red", "bytes; decode it first"),
        (bytearray(b"red"), "bytearray; decode it first"),
        ({"a": "red"}, "dict; pass its values"),
        (3, "int"),
        (np.array("red"), "ndarray of 0 dimensions"),
        (np.array([["red"], ["blue"]]), "ndarray of 2 dimensions"),
    ],
)
def test_what_is_no_iterable_of_str_is_named(texts: Any, found: str) -> None:
    with pytest.raises(TypeError) as caught:
        as_texts(texts)
    assert str(caught.value) == f"texts: expected a str or an iterable of str, found {found}"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["red", 3], "texts[1]: expected str, found int"),
        ([None], "texts[0]: expected str, found NoneType"),
        ([b"red"], "texts[0]: expected str, found bytes; decode it first"),
        ([["red"]], "texts[0]: expected str, found list"),
    ],
)
def test_item_that_is_no_text_is_named(texts: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        as_texts(texts)
    assert str(caught.value) == message


def test_lone_surrogate_is_named_with_its_index_and_text() -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] has a lone surrogate, U\+D83D, at character 4, .*shoe\\ud83d boot"):
        as_texts(["red", "shoe\ud83d boot"])
    assert as_texts(["shoe \U0001f45f", "\x00", ""]) == ["shoe \U0001f45f", "\x00", ""]
