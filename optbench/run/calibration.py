"""The calibration texts of a run: drawn from the recipe's sources, and never from a test."""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optbench.errors import TaskError
from optbench.recipe.schema import Recipe
from optbench.tasks import JudgedTexts, judged_texts
from optbench.tasks.beir import Beir
from optbench.tasks.corpus import read_corpus
from optbench.tasks.general import general_texts
from optbench.tasks.qrels import has_judgments

__all__ = ["DrawnTexts", "draw_calibration", "sample_texts"]

# Sources that hold less than this share of the texts that the recipe asks for are completed with general texts.
SHARE_MIN = 0.5


@dataclass(frozen=True)
class DrawnTexts:
    """Texts with their prompts in front, and where they come from.

    Attributes:
        warning: why general texts replace those of the sources; empty if they do not.
    """

    texts: tuple[str, ...]
    note: str
    warning: str = ""


@dataclass(frozen=True)
class _Drawn:
    queries: Sequence[str]
    documents: Sequence[str]
    note: str


def draw_calibration(recipe: Recipe, judged: JudgedTexts) -> DrawnTexts:
    """Draw the recipe's calibration texts: queries, documents, then general texts, each with its prompt.

    They come from `calibration.files` if there are any, else from what the recipe's tasks leave unjudged, an equal share from each. If
    these hold too few, general texts complete them.

    Args:
        recipe: its `calibration` says how many and from where.
        judged: the test texts of all tasks of the run, which are left out.

    Raises:
        TaskError: a source cannot be read.
    """
    wish, prompts = recipe.calibration, recipe.base.prompts
    drawn = [] if wish.texts == 0 else _from_files(recipe, judged) if wish.files else _from_tasks(recipe, judged)
    queries = [text for each in drawn for text in each.queries][: wish.texts]
    documents = [text for each in drawn for text in each.documents][: wish.texts - len(queries)]
    missing = wish.texts - len(queries) - len(documents)
    filling = missing if missing > (1 - SHARE_MIN) * wish.texts else 0
    general = _without(judged, general_texts(wish.general + filling, wish.seed, wish.languages))
    notes = [each.note for each in drawn]
    if general:
        notes.append(f"{len(general)} general texts ({', '.join(wish.languages)})")
    warning = ""
    if filling:
        warning = (
            f"calibration: {'; '.join(notes[: len(drawn)])}: general texts ({', '.join(wish.languages)}) take the place of {filling} of "
            f"{wish.texts} texts; name texts like your own in calibration.files"
        )
    return DrawnTexts(
        (*_prefixed(prompts.query, queries), *_prefixed(prompts.document, documents), *_prefixed(prompts.document, general)),
        "; ".join(notes),
        warning,
    )


def _prefixed(prompt: str, texts: Iterable[str]) -> list[str]:
    return [prompt + text for text in texts]


def _without(judged: JudgedTexts, texts: Iterable[str]) -> list[str]:
    return [text for text in texts if judged.find(text) is None]


def _from_tasks(recipe: Recipe, judged: JudgedTexts) -> list[_Drawn]:
    """What the recipe's tasks leave unjudged, half queries and half documents, an equal share from each task that leaves some."""
    wish = recipe.calibration
    spare = [task.calibration_texts(wish.texts, wish.seed) for task in recipe.tasks]
    share = -(-wish.texts // max(1, sum(bool(each.queries or each.documents) for each in spare)))
    found = []
    for each in spare:
        queries = _without(judged, each.queries[: share // 2])
        documents = _without(judged, each.documents[: share - len(queries)])
        counts = f"{len(queries)} queries and {len(documents)} documents, out of " if queries or documents else ""
        found.append(_Drawn(queries, documents, counts + each.note))
    return found


def _from_files(recipe: Recipe, judged: JudgedTexts) -> list[_Drawn]:
    """Texts of the recipe's files, an equal share from each, half of them in the role of queries."""
    wish = recipe.calibration
    share = -(-wish.texts // len(wish.files))
    found = []
    for name in wish.files:
        path = recipe.folder / name
        # The folder's own test stays out as well, whether or not this run measures it.
        own = judged_texts([Beir(path=path)]) if has_judgments(path, "test") else JudgedTexts()
        texts = sample_texts((text for text in read_corpus(path) if judged.find(text) is None and own.find(text) is None), share, wish.seed)
        if not texts:
            raise TaskError(f"{path}: holds no text outside the tests, so none is left to calibrate on; remove it from calibration.files")
        found.append(_Drawn(texts[: len(texts) // 2], texts[len(texts) // 2 :], f"{len(texts)} texts of {name}"))
    return found


def sample_texts(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """At most `count` distinct texts, drawn in one pass and in memory for `count`.

    A text is drawn by its hash: the same whatever the order of the texts, and leaving one out changes no other.
    """
    held: set[str] = set()
    heap: list[tuple[int, str]] = []
    for text in texts:
        if text in held:
            continue
        digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest), text)
        if len(heap) < count:
            heapq.heappush(heap, entry)
            held.add(text)
        elif entry > heap[0]:
            held.remove(heapq.heapreplace(heap, entry)[1])
            held.add(text)
    return [text for _, text in sorted(heap, reverse=True)]
