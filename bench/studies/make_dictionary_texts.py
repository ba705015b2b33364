"""Make general English texts to distill on from dictionaries: definitions and examples, one per line, gzipped.

    apt-get download wordnet-base dict-gcide
    for package in *.deb; do dpkg-deb -x $package dictionaries; done
    python bench/studies/make_dictionary_texts.py dictionaries texts.txt.gz --queries queries.txt.gz

Sources: WordNet 3.0 (WordNet License) and the Collaborative International Dictionary of English 0.48 (GPL-3). The texts are words with
their definitions, definitions alone, example sentences and encyclopedic sentences. `--queries` writes a second file of texts like
queries: names of things in common words, and questions made from definitions. The output is deterministic.
"""

import argparse
import gzip
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

WORDS_MIN, WORDS_MAX = 5, 70
SENTENCE_WORDS_MIN, SENTENCE_WORDS_MAX = 8, 60
# A name counts as common if it has at most three words, each at least this frequent in the dictionaries.
NAME_WORDS_MAX, COMMON = 3, 20
QUESTION_WORDS_MIN, QUESTION_WORDS_MAX = 3, 22
# By WordNet's lexicographer file: people (18), places (15), everything else.
QUESTIONS = {
    "18": ("Who was the {gloss}?", "Which {gloss}?", "Who is called {name}?", "What is {name} known for?"),
    "15": ("Where is {name}?", "What is the name of the {gloss}?", "Which {gloss}?", "How many people live in {name}?"),
    "": ("What is {name}?", "What is the {gloss} called?", "Which kind of {gloss}?", "How does {name} work?", "Why is {name} important?"),
}


def as_sentence(text: str) -> str:
    text = text.strip(" ;,")
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".") if text else ""


def synsets(folder: Path, part_of_speech: str) -> Iterator[tuple[str, list[str], str]]:
    """Read each synset: the number of its lexicographer file, its words, and its gloss (definitions and quoted examples)."""
    for line in (folder / f"data.{part_of_speech}").read_text(encoding="utf-8").splitlines():
        if not line.startswith("  "):
            head, gloss = line.split(" | ", 1)
            _, kind, _, count, *fields = head.split()
            yield kind, [word.replace("_", " ") for word in fields[: 2 * int(count, 16) : 2]], gloss


def wordnet(folder: Path) -> Iterator[str]:
    """`run 3: a score in baseball ...` as one text with its word or without, and each example as a sentence."""
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        for _, words, gloss in synsets(folder, part_of_speech):
            word = words[0].split("(")[0]
            parts = [part.strip() for part in gloss.split(";")]
            definition = "; ".join(part for part in parts if not part.startswith('"'))
            yield f"{word}: {definition}"
            yield as_sentence(definition)
            yield from (as_sentence(part.strip('" ')) for part in parts if part.startswith('"'))


def gcide(path: Path) -> Iterator[str]:
    """Full sentences, without headwords, pronunciation, etymology and citations."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore")
    for paragraph in re.split(r"\n\s*\n", text):
        plain = re.sub(r"\[[^\]]{0,40}\]|[{}]", "", " ".join(paragraph.split()))
        for sentence in re.split(r'(?<=[a-z][.!?]) (?=[A-Z"])', plain):
            whole = sentence.strip()
            fits = SENTENCE_WORDS_MIN <= len(whole.split()) <= SENTENCE_WORDS_MAX
            if fits and whole[0].isupper() and whole[-1] in ".!?" and not re.search(r"\\|--|=|\?.", whole):
                yield whole


def asked(folder: Path, texts: Iterable[str]) -> Iterator[str]:
    """Names of things, all of whose words are common in `texts`, and a question about each thing."""
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    generator = random.Random(0)  # noqa: S311  # a draw, not a secret
    for kind, names, definition in synsets(folder, "noun"):
        for name in names:
            words = re.findall(r"[a-z]+", name.lower())
            if 0 < len(words) <= NAME_WORDS_MAX and all(counts[word] >= COMMON for word in words):
                yield name
        gloss = re.sub(r"\([^)]*\)", "", definition.split(";")[0])
        gloss = re.sub(r"^(a|an|the|any|one) ", "", " ".join(gloss.split()))
        if QUESTION_WORDS_MIN <= len(gloss.split()) <= QUESTION_WORDS_MAX:
            yield generator.choice(QUESTIONS.get(kind, QUESTIONS[""])).format(name=names[0], gloss=gloss)


def write(path: Path, texts: list[str]) -> None:
    random.Random(0).shuffle(texts)  # noqa: S311  # an order, not a secret
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(texts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionaries", type=Path, help="the folder with the unpacked packages")
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=Path, help="also write names and questions to this file")
    arguments = parser.parse_args()
    words = arguments.dictionaries / "usr/share/wordnet"
    sentences = list(dict.fromkeys(gcide(arguments.dictionaries / "usr/share/dictd/gcide.dict.dz")))
    glosses = [text for text in dict.fromkeys(wordnet(words)) if WORDS_MIN <= len(text.split()) <= WORDS_MAX]
    texts = [*sentences, *glosses]
    print(f"{len(sentences)} sentences of GCIDE, {len(glosses)} texts of WordNet, {sum(len(text.split()) for text in texts)} words")
    if arguments.queries:
        queries = list(dict.fromkeys(asked(words, texts)))
        print(f"{len(queries)} names and questions")
        write(arguments.queries, queries)
    write(arguments.out, texts)


if __name__ == "__main__":
    main()
