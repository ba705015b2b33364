"""General-domain texts to calibrate on beside a task's own.

English: 2,000 glosses, examples and questions from WordNet 3.0, in `data/general.txt`, which `bench/make_general_texts.py` writes
(`data/general.LICENSE` is WordNet's license). Other languages: the paragraphs of the Universal Declaration of Human Rights, in
`data/declaration.tsv.gz`, which `bench/make_declaration_texts.py` writes.
"""

import random
from collections.abc import Sequence
from importlib import resources
from itertools import zip_longest

from optbench.tasks.base import draw

__all__ = ["LANGUAGES", "general_texts"]

LANGUAGES = (
    *("en", "ar", "bg", "cs", "da", "de", "el", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "lt", "lv"),
    *("nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "th", "tr", "uk", "vi", "zh"),
)
"""ISO 639-1 codes of the languages that there are texts in."""
# A paragraph stands for a document; its first words, as many as these, for a query.
QUERY_WORDS = (2, 8)


def general_texts(n: int, seed: int = 0, languages: Sequence[str] = ("en",)) -> tuple[str, ...]:
    """Draw at most `n` of the texts, an equal share in each language; the same seed draws the same texts on any machine."""
    if not languages:
        return ()
    share = -(-n // len(languages))
    columns = [_english(share, seed) if language == "en" else _declaration(language, share, seed) for language in languages]
    return tuple(text for row in zip_longest(*columns) for text in row if text is not None)[:n]


def _english(n: int, seed: int) -> tuple[str, ...]:
    content = resources.files("optbench.tasks").joinpath("data/general.txt").read_text(encoding="utf-8")
    return draw(content.splitlines(), n, seed)


def _declaration(language: str, n: int, seed: int) -> tuple[str, ...]:
    """Draw paragraphs and, as half of the texts, first words of paragraphs: characters where a language has no spaces."""
    import gzip

    with resources.files("optbench.tasks").joinpath("data/declaration.tsv.gz").open("rb") as file:
        lines = gzip.decompress(file.read()).decode("utf-8").splitlines()
    paragraphs = [line.removeprefix(f"{language}\t") for line in lines if line.startswith(f"{language}\t")]
    generator = random.Random(seed)  # noqa: S311  # sampling, not cryptography
    starts = []
    for text in paragraphs:
        words = generator.randint(*QUERY_WORDS)
        starts.append(" ".join(text.split()[:words]) if language not in {"ja", "th", "zh"} else text[: 3 * words])
    whole = draw(paragraphs, n - n // 2, seed)
    short = draw(starts, n // 2, seed, without=whole)
    return tuple(text for row in zip_longest(whole, short) for text in row if text is not None)
