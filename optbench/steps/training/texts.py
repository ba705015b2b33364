"""Texts to train or calibrate on: read from files, kept apart from what the tasks test, and looked at before hours are spent on them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optbench.errors import StepError
from optbench.model.checkpoint import Prompts, read_prompts
from optbench.model.tokenizer import load_tokenizer
from optbench.steps.base import StepContext
from optbench.tasks import Beir, JudgedTexts, judged_texts
from optbench.tasks.corpus import find_corpus, read_corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextPaths", "check_known", "check_not_judged", "excerpts", "files_of_texts", "gather_texts", "read_texts", "text_files"]

TextPaths = Annotated[
    tuple[Path, ...],
    Field(
        description=(
            "More texts: .txt (a text a line), .jsonl (text, perhaps title), either perhaps .gz, or a BEIR folder, of which its test's "
            "texts are left out; relative to the recipe."
        )
    ),
]

# all-MiniLM-L6-v2 on English product titles: 0.1 % unknown tokens; on Thai or Amharic, which its vocabulary lacks: above 60 %.
UNKNOWN_SHARE_MAX = 0.2
# The 135 queries of Chorus have one to three words.
EXCERPT_WORDS_MAX = 4
# So many texts settle a share to a few percent.
LOOKED_AT = 2000


def text_files(path: Path) -> dict[str, Path]:
    """The files that `read_texts` reads of a path, by name: one, or a BEIR folder's corpus with its queries and test judgments.

    Raises:
        TaskError: there is none, or it is of another kind.
    """
    if not path.is_dir():
        return {path.name: find_corpus(path)}
    beside = [path / name for name in ("queries.jsonl", "queries.jsonl.gz", "qrels/test.tsv")]
    return {str(file.relative_to(path)): file for file in (find_corpus(path), *beside) if file.is_file()}


def files_of_texts(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """The files that a step with these texts reads, by path as the recipe has it and name; paths are relative to `folder`.

    Raises:
        TaskError: one is missing.
    """
    return {f"{path}: {name}": file for path in paths for name, file in text_files(folder / path).items()}


def read_texts(path: Path, prompts: Prompts, count: int, seed: int) -> list[str]:
    """Distinct texts of a corpus, with prompts in front.

    Of a BEIR folder with a test, what the test neither asks nor judges. Where the prompts differ, half of the texts get the query's,
    drawn with the seed: both sides are to be learnt.

    Args:
        path: a file or folder as `optbench.tasks.corpus` reads them.
        prompts: put before queries and documents.
        count: how many at most; drawn with `seed` where there are more.
        seed: of the draws.

    Raises:
        TaskError: nothing there, or it is not what it should be.
        StepError: it holds no text.
    """
    if (path / "qrels" / "test.tsv").is_file():
        task = Beir.from_folder(path)
        spare, judged = task.calibration_texts(count, seed), judged_texts([task])
        sides = [(prompts.query, spare.queries), (prompts.document, spare.documents)]
        # The task tells texts apart by case and spaces too; a product that is there twice is not spare for that.
        return [prompt + text for prompt, texts in sides for text in texts if judged.find(text) is None]
    distinct = list(dict.fromkeys(read_corpus(path)))
    if not distinct:
        raise StepError(f"{path}: holds no text; one text a line is wanted")
    generator = random.Random(seed)  # noqa: S311  # a draw, not a secret
    drawn = generator.sample(distinct, min(count, len(distinct)))
    return [generator.choice((prompts.query, prompts.document)) + text for text in drawn]


def gather_texts(paths: Sequence[Path], source: Path, context: StepContext, count: int, seed: int) -> list[str]:
    """The calibration texts and those of `paths`, each once, with the prompts of the checkpoint `source` in front.

    Args:
        paths: as `read_texts` takes them, relative to the recipe.
        source: the checkpoint that will read them.
        context: of the step.
        count: how many of each path at most.
        seed: of the draws.

    Raises:
        TaskError: a path that is not what it should be.
        StepError: a path without text, or a text of the test.
    """
    prompts = read_prompts(source)
    found = [*context.calibration_texts]
    for path in paths:
        found += read_texts(context.folder / path, prompts, count, seed)
    texts = list(dict.fromkeys(text for text in found if text.strip()))
    check_not_judged(texts, prompts, context.judged)
    return texts


def excerpts(texts: Sequence[str], prompts: Prompts, share: float, judged: JudgedTexts, seed: int) -> list[str]:
    """Runs of one to four words of the texts, to stand in for queries, with the query's prompt in front.

    Args:
        texts: with prompts in front, as `gather_texts` gives them.
        prompts: those prompts.
        share: how many excerpts there are to a text, at most 1.
        judged: what must not come out: many a query is a run of words of a title.
        seed: of the draws.

    Returns:
        Distinct excerpts, none of them one of the texts; fewer than asked for where they coincide.
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
    """Refuse texts that a task asks or judges; equal up to case and white space.

    Raises:
        StepError: names the first.
    """
    for text in texts:
        for prompt in dict.fromkeys(("", prompts.query, prompts.document)):
            task = judged.find(text[len(prompt) :]) if text.startswith(prompt) else None
            if task is not None:
                raise StepError(f"the text {text[:120]!r} is in the test of {task}, so its figures would mean nothing; take it out")


def check_known(folder: Path, texts: Sequence[str]) -> float:
    """The share of tokens that the model's vocabulary lacks, over some of the texts.

    A vocabulary of bytes, or of every script, knows all: what is in another language than the model's is then not seen here.

    Raises:
        StepError: so large a share that the texts are in a script which the model cannot read.
    """
    tokenizer: Tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    unknown = next((vocabulary[piece] for piece in ("[UNK]", "<unk>") if piece in vocabulary), None)
    step = max(1, len(texts) // LOOKED_AT)
    rows = tokenizer.encode_batch_fast(list(texts[::step]), add_special_tokens=False)
    tokens = sum(sum(row.attention_mask) for row in rows)
    missing = sum(row.ids.count(unknown) for row in rows) if unknown is not None else 0
    share = missing / max(tokens, 1)
    if share > UNKNOWN_SHARE_MAX:
        raise StepError(
            f"{100 * share:.0f} % of the tokens of the texts are not in the model's vocabulary (at most {100 * UNKNOWN_SHARE_MAX:.0f} % "
            f"is wanted): they are in a language that this model cannot read; give texts in its languages. First: {texts[0][:80]!r}"
        )
    return share
