"""Texts to train or calibrate on: read from files, kept apart from the tasks' test texts, and checked before hours of work on them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.errors import StepError
from optbench.model.checkpoint import Prompts, read_prompts
from optbench.steps.base import CalibrationTexts, EvaluationTexts, RecipeFiles, StepContext
from optbench.tasks import JudgedTexts, judged_texts
from optbench.tasks.beir import Beir
from optbench.tasks.corpus import find_corpus, read_corpus
from optbench.tasks.files import find_table
from optbench.tasks.qrels import find_judgments, has_judgments

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "TextPaths",
    "check_known",
    "check_not_judged",
    "check_texts",
    "excerpts",
    "files_of_texts",
    "gather_texts",
    "read_texts",
    "text_files",
]

TextPaths = Annotated[
    tuple[Path, ...],
    Field(
        description=(
            "More texts: .txt (one per line), .jsonl, .csv, .tsv or .parquet (text, optionally title), or a BEIR folder without its test's "
            "texts; paths relative to the recipe."
        )
    ),
]

# all-MiniLM-L6-v2 on English product titles: 0.1 % unknown tokens; on Thai or Amharic, which its vocabulary lacks: above 60 %.
UNKNOWN_SHARE_MAX = 0.2
# The 135 queries of Chorus have one to three words.
EXCERPT_WORDS_MAX = 4
# Enough to estimate a share to a few percent.
CHECKED_TEXTS = 2000


def text_files(path: Path) -> dict[str, Path]:
    """The files that `read_texts` reads for a path, by name: one, or a BEIR folder's corpus, queries and test judgments."""
    if not path.is_dir():
        return {path.name: find_corpus(path)}
    files = [find_corpus(path), find_table(path, "queries"), *([find_judgments(path, "test")] if has_judgments(path, "test") else [])]
    return {str(file.relative_to(path)): file for file in files if file is not None}


def files_of_texts(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """The files that a step with these texts reads, by the recipe's path and the file's name; paths are relative to `folder`."""
    return {f"{path}: {name}": file for path in paths for name, file in text_files(folder / path).items()}


def check_texts(paths: Sequence[Path], folder: Path) -> None:
    """Read the files of a step's texts once, and keep nothing.

    Raises:
        TaskError: a file cannot be read; names the line.
    """
    for path in paths:
        if has_judgments(folder / path, "test"):
            Beir(path=folder / path).load()
        for _ in read_corpus(folder / path):
            pass


def read_texts(path: Path, prompts: Prompts, count: int, seed: int) -> list[str]:
    """At most `count` distinct texts of a corpus, at random, with prompts in front.

    A BEIR folder with a test gives the texts that its test does not use. Where the prompts differ, a random half of the texts get the
    query's, so that both sides are trained.

    Raises:
        TaskError: the path does not exist or cannot be read.
        StepError: it holds no text.
    """
    if has_judgments(path, "test"):
        task = Beir(path=path)
        spare, judged = task.calibration_texts(count, seed), judged_texts([task])
        sides = [(prompts.query, spare.queries), (prompts.document, spare.documents)]
        # The task compares texts exactly; a variant of a test text in case or spaces is a test text too.
        found = [prompt + text for prompt, texts in sides for text in texts if judged.find(text) is None]
        if not found:
            raise StepError(f"{path}: every text is in its own test, so none is left to train on; give texts that no test uses")
        return found
    distinct = list(dict.fromkeys(read_corpus(path)))
    if not distinct:
        raise StepError(f"{path}: holds no text; expected one text per line")
    generator = random.Random(seed)  # noqa: S311  # a draw, not a secret
    drawn = generator.sample(distinct, min(count, len(distinct)))
    return [generator.choice((prompts.query, prompts.document)) + text for text in drawn]


def gather_texts(paths: Sequence[Path], source: Path, context: StepContext, count: int, seed: int) -> list[str]:
    """The calibration texts and at most `count` of each path, each once, with the prompts of the checkpoint `source` in front.

    Raises:
        TaskError: a path does not exist or cannot be read.
        StepError: a path without text, or a test text.
    """
    prompts = read_prompts(source)
    found = [*context.need(CalibrationTexts)]
    for path in paths:
        found += read_texts(context.need(RecipeFiles) / path, prompts, count, seed)
    texts = list(dict.fromkeys(text for text in found if text.strip()))
    judged = context.get(EvaluationTexts)
    if judged is not None:
        check_not_judged(texts, prompts, judged)
    return texts


def excerpts(texts: Sequence[str], prompts: Prompts, share: float, judged: JudgedTexts, seed: int) -> list[str]:
    """Distinct runs of one to four words of the texts, to stand in for queries, with the query's prompt in front.

    Args:
        texts: with prompts in front, from `gather_texts`.
        prompts: those prompts.
        share: excerpts per text, at most 1; fewer result where they coincide with one another or with a text.
        judged: texts that must not result: many queries are a run of words of a title.
        seed: random seed.
    """
    generator = random.Random(seed)  # noqa: S311  # a draw, not a secret
    found: dict[str, None] = {}
    for text in generator.sample(texts, int(share * len(texts))):
        words = _without_prompt(text, prompts).split()
        length = generator.randint(1, EXCERPT_WORDS_MAX)
        begin = generator.randint(0, max(0, len(words) - length))
        excerpt = " ".join(words[begin : begin + length])
        if judged.find(excerpt) is None:
            found[prompts.query + excerpt] = None
    known = set(texts)
    return [excerpt for excerpt in found if excerpt not in known]


def _without_prompt(text: str, prompts: Prompts) -> str:
    return text.removeprefix(max((prompt for prompt in (prompts.query, prompts.document) if text.startswith(prompt)), key=len, default=""))


def check_not_judged(texts: Sequence[str], prompts: Prompts, judged: JudgedTexts) -> None:
    """Refuse a task's queries and judged documents, compared without case and white space; names the first."""
    for text in texts:
        for prompt in dict.fromkeys(("", prompts.query, prompts.document)):
            task = judged.find(text[len(prompt) :]) if text.startswith(prompt) else None
            if task is not None:
                raise StepError(f"the text {text[:120]!r} is in the test of {task}, so its results would mean nothing; remove it")


def check_known(folder: Path, texts: Sequence[str]) -> float:
    """The share of tokens that the model's vocabulary lacks, over a sample of the texts; refuses more than a fifth.

    A vocabulary of bytes, or of every script, lacks none: texts in a language that the model does not know are then not detected.
    """
    from optbench.model.tokenizer import load_tokenizer

    tokenizer: Tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    unknown = next((vocabulary[piece] for piece in ("[UNK]", "<unk>") if piece in vocabulary), None)
    step = max(1, len(texts) // CHECKED_TEXTS)
    rows = tokenizer.encode_batch_fast(list(texts[::step]), add_special_tokens=False)
    tokens = sum(sum(row.attention_mask) for row in rows)
    missing = sum(row.ids.count(unknown) for row in rows) if unknown is not None else 0
    share = missing / max(tokens, 1)
    if share > UNKNOWN_SHARE_MAX:
        raise StepError(
            f"{100 * share:.0f} % of the tokens of the texts are not in the model's vocabulary (the limit is "
            f"{100 * UNKNOWN_SHARE_MAX:.0f} %): they are in a language that this model cannot read; give texts in its languages. "
            f"First: {texts[0][:80]!r}"
        )
    return share
