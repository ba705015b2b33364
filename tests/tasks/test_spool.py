"""Corpora by id, in memory or in a file: the same texts in the same order."""

import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.errors import TaskError
from optbench.tasks.spool import SpooledTexts, keep_texts


@given(st.dictionaries(st.text(), st.text(), max_size=30), st.integers(0, 40))
def test_file_and_memory_give_the_same_texts(texts: dict[str, str], memory_bytes: int) -> None:
    kept = keep_texts(texts.items(), memory_bytes)
    assert list(kept.items()) == list(texts.items())
    assert len(kept) == len(texts)
    assert isinstance(kept, SpooledTexts) == (sum(map(len, texts.values())) > memory_bytes)


def test_unknown_id_is_a_key_error_as_in_a_dictionary() -> None:
    spooled = SpooledTexts([("a", "text")])
    assert "b" not in spooled
    with pytest.raises(KeyError):
        spooled["b"]


def test_lone_surrogates_of_broken_json_survive() -> None:
    assert SpooledTexts([("a", "\ud800")])["a"] == "\ud800"


def test_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(TaskError, match=r"No space left on device: a temporary file is needed for a corpus of more than 0 texts; .*TMPDIR"):
        SpooledTexts([("a", "text")])
