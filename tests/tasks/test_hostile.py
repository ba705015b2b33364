"""Hostile texts: the same on any machine, every kind in turn, and none of those that measure among those that calibrate."""

import unicodedata

import pytest

from optbench.tasks.hostile import KINDS, MARKS, UNSEEN_KINDS, Part, hostile_kinds, hostile_texts

PARTS: tuple[Part, ...] = ("calibration", "test")


@pytest.mark.parametrize("part", PARTS)
def test_same_seed_makes_the_same_texts_and_a_smaller_count_their_beginning(part: Part) -> None:
    assert hostile_texts(60, part, 3) == hostile_texts(60, part, 3)
    assert hostile_texts(60, part, 3)[:20] == hostile_texts(20, part, 3)
    assert hostile_texts(60, part, 3) != hostile_texts(60, part, 4)


@pytest.mark.parametrize("part", PARTS)
def test_texts_are_valid_and_never_blank(part: Part) -> None:
    for text in hostile_texts(400, part):
        assert text.strip()
        text.encode()  # raises on a lone surrogate
        assert not any(unicodedata.category(letter) in {"Cc", "Cn", "Cs"} and letter not in "\n\t" for letter in text)


def test_texts_that_measure_share_nothing_with_those_that_calibrate_but_single_words() -> None:
    calibrating = set(hostile_texts(500, "calibration"))
    shared = [text for text in hostile_texts(500, "test") if text in calibrating]
    assert all(text.isalnum() or set(text) <= set(MARKS["calibration"]) for text in shared)


def scripts(part: Part) -> set[str]:
    """The first word of each letter's Unicode name, such as CYRILLIC."""
    letters = {letter for text in hostile_texts(600, part) for letter in text if letter.isalpha()}
    return {unicodedata.name(letter).split()[0].split("-")[0] for letter in letters}


def test_scripts_that_measure_are_not_those_that_calibrate() -> None:
    # Chinese and Korean have many letters: each part has a stretch of its own.
    assert scripts("calibration") & scripts("test") <= {"LATIN", "CJK", "HANGUL"}
    assert {"CYRILLIC", "ARABIC", "DEVANAGARI", "HIRAGANA"} <= scripts("calibration")
    assert {"GREEK", "HEBREW", "THAI", "KATAKANA", "GEORGIAN", "ARMENIAN"} <= scripts("test")


def test_kinds_take_turns_and_only_the_test_has_the_unseen_ones() -> None:
    assert tuple(hostile_kinds("calibration")) == tuple(KINDS)
    assert set(hostile_kinds("test")) == {*KINDS, *UNSEEN_KINDS}
    assert not set(KINDS) & set(UNSEEN_KINDS)
    by_kind = dict(zip(hostile_kinds("test"), hostile_texts(len(hostile_kinds("test")), "test"), strict=True))
    assert by_kind["capitals"].isupper()
    assert by_kind["html"].startswith("<")
    assert by_kind["JSON"].startswith("[{")
    assert len(by_kind["single word or character"].split()) == 1
    assert len(by_kind["longest"].split()) == len(by_kind["longest, repeated"].split()) == 450
    assert len(set(by_kind["longest, repeated"].split())) == 1
