"""Hostile texts: inputs that no corpus of prose holds and every service receives.

Repeated words, runs of punctuation, markup, part codes, foreign scripts, single characters, the longest input. They drive activations
out of the ranges of ordinary texts, which a static quantizer then clips. All are made from a seed. The texts to calibrate on and the
texts to measure with share no scripts, marks or seeds, and the latter have kinds of their own (`UNSEEN_KINDS`), so a figure shows what
calibration did for texts that it has not seen.
"""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from optbench.tasks.general import general_texts

__all__ = ["KINDS", "UNSEEN_KINDS", "Part", "hostile_kinds", "hostile_texts"]

Part = Literal["calibration", "test"]

# Words enough for 512 tokens.
LONGEST_WORDS = 450
# First and last letter of an alphabet, or the first and last of a stretch of characters.
SCRIPTS: Mapping[Part, Sequence[tuple[str, str]]] = MappingProxyType(
    {
        "calibration": (("а", "я"), ("ا", "ي"), ("अ", "ह"), ("ぁ", "ん"), ("一", "拿"), ("가", "쀼")),
        "test": (("α", "ω"), ("א", "ת"), ("ก", "ฮ"), ("ァ", "ン"), ("挀", "龥"), ("ა", "ჰ"), ("ա", "ֆ"), ("쁀", "힣")),
    }
)
MARKS: Mapping[Part, str] = MappingProxyType({"calibration": '!-.,?:*#"()', "test": "!?.=_~+'/;|<>[]{}&@$%^…•—«»"})


@dataclass(frozen=True)
class _Maker:
    """What texts of one part are made of."""

    part: Part
    chance: random.Random
    words: Sequence[str]

    def pick(self, count: int) -> list[str]:
        """`count` English words."""
        return self.chance.choices(self.words, k=count)

    def count(self, most: int) -> int:
        """A number from 2 to `most`; small ones are more likely."""
        return round(2 * math.pow(most / 2, self.chance.random()))

    def sentence(self, most: int = 12) -> str:
        return " ".join(self.pick(self.count(most)))

    def marks(self, most: int) -> str:
        """One mark again and again."""
        return self.chance.choice(MARKS[self.part]) * self.count(most)

    def letters(self, count: int) -> str:
        return "".join(self.chance.choices(string.ascii_uppercase, k=count))

    def digits(self, count: int) -> str:
        return "".join(self.chance.choices(string.digits, k=count))

    def foreign(self, count: int) -> str:
        """`count` words of one foreign script."""
        first, last = map(ord, self.chance.choice(SCRIPTS[self.part]))
        return " ".join("".join(chr(self.chance.randint(first, last)) for _ in range(self.count(10))) for _ in range(count))

    def code(self) -> str:
        """A part number."""
        separator = self.chance.choice("-/ ._")
        return separator.join((self.letters(self.count(4)), self.digits(self.count(6)), self.letters(1)))

    def number(self) -> str:
        whole = self.digits(self.count(7))
        return self.chance.choice(
            (whole, f"{whole}.{self.digits(2)}", f"-{whole}", f"{whole[:2]}/{whole[2:4]}/20{self.digits(2)}", f"{whole} %")
        )


def _repeated_word(make: _Maker) -> str:
    unit = make.chance.choice((*make.pick(1), make.pick(1)[0].upper(), make.digits(2), make.foreign(1)))
    return make.chance.choice((" ", ", ", "\n", "")).join([unit] * make.count(300))


def _repeated_phrase(make: _Maker) -> str:
    return " ".join([make.sentence(6)] * make.count(60))


def _punctuation(make: _Maker) -> str:
    return make.marks(100)


def _mixed_punctuation(make: _Maker) -> str:
    return make.chance.choice((" ", "")).join([" ".join(make.marks(8) for _ in range(make.count(6)))] * make.count(60))


def _markdown(make: _Maker) -> str:
    rows = "".join(f"| {make.pick(1)[0]} | **{make.number()}** |\n" for _ in range(make.count(12)))
    points = "".join(f"- [{make.sentence(4)}](https://{make.pick(1)[0]}.com)\n" for _ in range(make.count(6)))
    return f"{'#' * make.chance.randint(1, 4)} {make.sentence(5)}\n\n| a | b |\n|---|---|\n{rows}\n{points}\n---\n> _{make.sentence()}_"


def _html(make: _Maker) -> str:
    tags = [make.chance.choice(("div", "span", "td", "li", "p")) for _ in range(make.count(20))]
    opened = "".join(f'<{tag} class="{make.pick(1)[0]}-{make.digits(1)}">' for tag in tags)
    return f"{opened}{make.sentence()}&nbsp;{''.join(f'</{tag}>' for tag in reversed(tags))}<br/>"


def _numbers(make: _Maker) -> str:
    return make.chance.choice((" ", "; ", "\n", ",")).join(make.number() for _ in range(make.count(100)))


def _part_codes(make: _Maker) -> str:
    return " ".join(make.code() for _ in range(make.count(30)))


def _foreign_script(make: _Maker) -> str:
    return make.foreign(make.count(60))


def _capitals(make: _Maker) -> str:
    return make.sentence(60).upper() + make.chance.choice(("", make.marks(8)))


def _single_token(make: _Maker) -> str:
    letter = chr(make.chance.randint(*map(ord, make.chance.choice(SCRIPTS[make.part]))))
    return make.chance.choice((make.letters(1).lower(), make.digits(1), make.chance.choice(MARKS[make.part]), letter, *make.pick(2)))


def _longest(make: _Maker) -> str:
    return " ".join(make.pick(LONGEST_WORDS))


def _longest_repeated(make: _Maker) -> str:
    unit = make.chance.choice((make.pick(1)[0], make.marks(3), make.number()))
    return " ".join([unit] * LONGEST_WORDS)


def _json(make: _Maker) -> str:
    return json.dumps([{word: make.chance.choice((make.number(), None, True, [])) for word in make.pick(4)} for _ in range(make.count(12))])


def _source_code(make: _Maker) -> str:
    lines = [f"    if {a}[{make.digits(1)}] != {b}: return {a}.{b}(*args, **{{'{a}': 0x{make.digits(3)}}})" for a, b in _pairs(make)]
    return f"def {make.pick(1)[0]}(self) -> None:\n" + "\n".join(lines)


def _addresses(make: _Maker) -> str:
    return " ".join(f"https://www.{a}.org/{b}?id={make.digits(5)}&q={b} {a}.{b}@{a}.com" for a, b in _pairs(make))


def _emoji(make: _Maker) -> str:
    shown = "".join(chr(make.chance.randint(0x1F600, 0x1F64F)) for _ in range(make.count(60)))
    return make.chance.choice((shown, f"{make.sentence()} {shown}"))


def _hexadecimal(make: _Maker) -> str:
    return "".join(make.chance.choices("0123456789abcdef", k=make.count(400)))


def _log_lines(make: _Maker) -> str:
    lines = [f"[20{make.digits(2)}-01-{make.digits(2)}T{make.digits(2)}:59:00Z] ERROR {a}::{b} <{make.code()}>" for a, b in _pairs(make)]
    return "\n".join(lines)


def _formulas(make: _Maker) -> str:
    return " ".join(rf"$\frac{{{a[0]}_{{{make.digits(1)}}}}}{{\sum_i {b[0]}^2}} \leq \alpha$" for a, b in _pairs(make))


def _key_mash(make: _Maker) -> str:
    return "".join(make.chance.choices("asdfghjkl;qwertz ", k=make.count(300))).strip() or "asdf"


def _spaced_letters(make: _Maker) -> str:
    return make.chance.choice((" ", "\t", "  .  ")).join(make.sentence(30).replace(" ", ""))


def _mixed_scripts(make: _Maker) -> str:
    return " ".join(make.chance.choice((make.foreign(1), make.pick(1)[0].title(), make.number())) for _ in range(make.count(80)))


def _boxes(make: _Maker) -> str:
    return "\n".join(make.chance.choice("═─│■★→") * make.count(40) for _ in range(make.count(8)))


def _stuttering(make: _Maker) -> str:
    return " ".join(" ".join([word] * make.count(12)) for word in make.pick(make.count(12)))


def _pairs(make: _Maker) -> list[tuple[str, str]]:
    return [(a, b) for a, b in (make.pick(2) for _ in range(make.count(10)))]


Kind = Callable[[_Maker], str]
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "repeated word": _repeated_word,
        "punctuation": _punctuation,
        "mixed punctuation": _mixed_punctuation,
        "markdown": _markdown,
        "longest": _longest,
        "numbers": _numbers,
        "foreign script": _foreign_script,
        "single word or character": _single_token,
        "repeated phrase": _repeated_phrase,
        "html": _html,
        "part codes": _part_codes,
        "capitals": _capitals,
        "longest, repeated": _longest_repeated,
    }
)
"""Kinds of both parts."""
UNSEEN_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "JSON": _json,
        "source code": _source_code,
        "addresses": _addresses,
        "emoji": _emoji,
        "hexadecimal": _hexadecimal,
        "log lines": _log_lines,
        "formulas": _formulas,
        "key mash": _key_mash,
        "spaced letters": _spaced_letters,
        "mixed scripts": _mixed_scripts,
        "boxes": _boxes,
        "stuttering": _stuttering,
    }
)
"""Kinds of the test part alone."""


def hostile_kinds(part: Part) -> Mapping[str, Kind]:
    """The kinds of a part, by name, in the order in which `hostile_texts` takes turns."""
    return KINDS if part == "calibration" else {**KINDS, **UNSEEN_KINDS}


def hostile_texts(count: int, part: Part, seed: int = 0) -> tuple[str, ...]:
    """Make hostile texts, each kind in turn; the same seed makes the same texts on any machine, and a smaller count their beginning."""
    words = sorted({word for text in general_texts(500, seed) for word in text.lower().split() if word.isalpha() and len(word) > 2})
    make = _Maker(part, random.Random(f"{part} {seed}"), words)  # noqa: S311  # sampling, not cryptography
    kinds = list(hostile_kinds(part).values())
    return tuple(kinds[index % len(kinds)](make) for index in range(count))
