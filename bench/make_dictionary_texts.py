"""Make English texts of no domain in particular to distill on, one a line, gzipped: dictionaries' definitions and examples.

    apt-get download wordnet-base dict-gcide
    for package in *.deb; do dpkg-deb -x $package dictionaries; done
    python bench/make_dictionary_texts.py dictionaries texts.txt.gz

Out of WordNet 3.0 (WordNet License) and the Collaborative International Dictionary of English 0.48 (GPL-3): single words with their
definitions, bare definitions, examples of use, and encyclopedic sentences. The same files give the same texts in the same order.
"""

import gzip
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

WORDS_MIN, WORDS_MAX = 5, 70
SENTENCE_WORDS_MIN, SENTENCE_WORDS_MAX = 8, 60


def as_sentence(text: str) -> str:
    text = text.strip(" ;,")
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".") if text else ""


def wordnet(folder: Path) -> Iterator[str]:
    """`run 3: a score in baseball ...` as one text with its word or without, and each example as a sentence."""
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part_of_speech}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, gloss = line.split(" | ", 1)
            word = head.split()[4].replace("_", " ").split("(")[0]
            parts = [part.strip() for part in gloss.split(";")]
            definition = "; ".join(part for part in parts if not part.startswith('"'))
            yield f"{word}: {definition}"
            yield as_sentence(definition)
            yield from (as_sentence(part.strip('" ')) for part in parts if part.startswith('"'))


def gcide(path: Path) -> Iterator[str]:
    """Whole sentences; headwords with their sounds, origins and citations are left out."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore")
    for paragraph in re.split(r"\n\s*\n", text):
        plain = re.sub(r"\[[^\]]{0,40}\]|[{}]", "", " ".join(paragraph.split()))
        for sentence in re.split(r'(?<=[a-z][.!?]) (?=[A-Z"])', plain):
            whole = sentence.strip()
            fits = SENTENCE_WORDS_MIN <= len(whole.split()) <= SENTENCE_WORDS_MAX
            if fits and whole[0].isupper() and whole[-1] in ".!?" and not re.search(r"\\|--|=|\?.", whole):
                yield whole


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    sentences = list(dict.fromkeys(gcide(source / "usr/share/dictd/gcide.dict.dz")))
    glosses = [text for text in dict.fromkeys(wordnet(source / "usr/share/wordnet")) if WORDS_MIN <= len(text.split()) <= WORDS_MAX]
    texts = [*sentences, *glosses]
    random.Random(0).shuffle(texts)  # noqa: S311  # an order, not a secret
    with gzip.open(out, "wt", encoding="utf-8") as file:
        file.write("\n".join(texts) + "\n")
    print(f"{len(sentences)} sentences of GCIDE, {len(glosses)} texts of WordNet, {sum(len(text.split()) for text in texts)} words")


if __name__ == "__main__":
    main()
