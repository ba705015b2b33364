"""Make optbench/tasks/data/general.txt: sentences, questions and phrases from WordNet 3.0, one text per line.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python bench/make_general_texts.py wordnet/usr/share/wordnet optbench/tasks/data/general.txt

Most texts are whole sentences: a model calibrated on phrases alone loses accuracy on sentences. The output is deterministic.
"""

import random
import re
import sys
from pathlib import Path

DRAWN = {"noun": 1500, "verb": 500, "adj": 250, "adv": 50}
VERB_SENTENCES = 400
WORDS_MIN, WORDS_MAX = 3, 70
QUESTIONS = (
    "What is {a} {word}?",
    "What does {word} mean?",
    "Where would one find {a} {word}?",
    "How is {a} {word} made?",
    "Which is better, {a} {word} or {a_other} {other}?",
    "Why do people need {a} {word}?",
)
NAME_QUESTIONS = ("Who or what is {word}?", "When did {word} become known?", "What is {word} known for?", "Where is {word} from?")


def with_article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"


def as_sentence(text: str) -> str:
    text = text.strip(" ;,")
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def parse(line: str) -> tuple[str, str, list[str]]:
    """A synset's first word, its definition, and its examples of use."""
    head, gloss = line.split(" | ", 1)
    word = head.split()[4].replace("_", " ").split("(")[0]
    parts = [part.strip() for part in gloss.strip().split(";")]
    definition = "; ".join(part for part in parts if not part.startswith('"'))
    return word, definition, [part.strip('" ') for part in parts if part.startswith('"') and part.endswith('"')]


def text_of(line: str, part_of_speech: str, other: str, generator: random.Random) -> str:
    """One text of a synset."""
    word, definition, examples = parse(line)
    chance = generator.random()
    if part_of_speech == "noun":
        is_name = word[0].isupper()
        if chance < 0.15:
            question = generator.choice(NAME_QUESTIONS if is_name else QUESTIONS)
            return question.format(a=with_article(word), word=word, a_other=with_article(other), other=other)
        if is_name and chance < 0.8:
            dead = re.search(r"\(\d{4}-\d{4}\)", definition)
            return as_sentence(f"{word} {'was' if dead else 'is'} {with_article(definition)} {definition}")
        if chance < 0.55:
            return as_sentence(f"{with_article(word)} {word} is {definition}")
        if chance < 0.7:
            return f"{word}: {definition}"
    if examples and chance < 0.8:
        return as_sentence(". ".join(as_sentence(example).rstrip(".") for example in examples[:3]))
    return as_sentence(definition) if chance < 0.9 else f"{word}, {definition}"


def verb_sentences(source: Path, generator: random.Random) -> list[str]:
    """WordNet's sentence frames filled with a verb: `The cars skid down the avenue.`"""
    templates = dict(line.split(" ", 1) for line in (source / "sents.vrb").read_text(encoding="utf-8").splitlines())
    found = []
    for line in (
        (source / "sidx.vrb" if (source / "sidx.vrb").is_file() else source / "sentidx.vrb").read_text(encoding="utf-8").splitlines()
    ):
        sense, _, numbers = line.partition(" ")
        verb = sense.split("%")[0].replace("_", " ")
        found += [as_sentence(templates[number] % verb) for number in numbers.replace(" ", "").split(",") if number in templates]
    return generator.sample(sorted(set(found)), VERB_SENTENCES)


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    generator = random.Random(0)  # noqa: S311  # a draw, not a secret
    texts = verb_sentences(source, generator)
    for part_of_speech, count in DRAWN.items():
        lines = (source / f"data.{part_of_speech}").read_text(encoding="utf-8").splitlines()
        synsets = generator.sample([line for line in lines if not line.startswith("  ")], count)
        others = [parse(line)[0] for line in synsets[1:] + synsets[:1]]
        texts += [text_of(line, part_of_speech, other, generator) for line, other in zip(synsets, others, strict=True)]
    # Some texts are a paragraph of two sentences.
    texts += [f"{as_sentence(one)} {as_sentence(two)}" for one, two in zip(*[iter(generator.sample(texts, 600))] * 2, strict=True)]
    kept = [text for text in dict.fromkeys(texts) if WORDS_MIN <= len(text.split()) <= WORDS_MAX]
    generator.shuffle(kept)
    out.write_text("\n".join(kept) + "\n", encoding="utf-8")
    print(f"{len(kept)} texts, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
