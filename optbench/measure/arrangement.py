"""The same texts on different ways to the model: alone, in another order, padded, or beside other texts."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from optbench.engines import Engine
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress

__all__ = ["ALONE", "Arrangement", "embed_arranged"]

Vectors = NDArray[np.float32]
# A text that is padded gets as many columns again, and at least so many.
PADDING_MIN = 8


class Arrangement(Frozen):
    """How the texts of one pass reach the model.

    Attributes:
        order: as given; turned round; so that each stands beside texts of like length; or beside texts of all lengths.
        size: texts a run.
        padding: the side on which a text run alone is padded to about twice its length.
    """

    order: Literal["given", "reversed", "like", "mixed"] = "given"
    size: int = 1
    padding: Literal["none", "right", "left"] = "none"


ALONE = Arrangement()


def embed_arranged(
    embed: Callable[[NDArray[np.int64], NDArray[np.int64]], Vectors],
    rows: Sequence[NDArray[np.int64]],
    arrangement: Arrangement,
    *,
    pad_id: int,
    longest: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Vectors:
    """Embed tokenized texts in an arrangement.

    Args:
        embed: takes input_ids and attention_mask, (batch, tokens) each.
        rows: the token ids of each text, without padding.
        arrangement: how they are run.
        pad_id: the id of padding.
        longest: the model's longest input; a text that fills it has no room for padding and runs as it is.
        progress: called with the share done.

    Returns:
        (texts, dimension), in the order of `rows`.
    """
    order = _order(rows, arrangement)
    found: dict[int, Vectors] = {}
    for start in range(0, len(order), arrangement.size):
        progress(start / len(order))
        measured = order[start : start + arrangement.size]
        # The last batch is filled up with texts of the first, so that no text has fewer companions.
        batch = [rows[index] for index in [*measured, *order[: arrangement.size - len(measured)]]]
        length = max(map(len, batch))
        if arrangement.padding != "none":
            length = max(length, min(longest, length + max(length, PADDING_MIN)))
        vectors = embed(*_pad(batch, length, pad_id, left=arrangement.padding == "left"))
        found.update(zip(measured, vectors, strict=False))
    return np.stack([found[index] for index in range(len(rows))])


def _order(rows: Sequence[NDArray[np.int64]], arrangement: Arrangement) -> list[int]:
    if arrangement.order in ("given", "reversed"):
        indices = list(range(len(rows)))
        return indices[::-1] if arrangement.order == "reversed" else indices
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    if arrangement.order == "like":
        return by_length
    batches = -(-len(rows) // arrangement.size)
    return [index for first in range(batches) for index in by_length[first::batches]]


def _pad(rows: Sequence[NDArray[np.int64]], length: int, pad_id: int, *, left: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


def serve_arrangements(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """The child's side: open once, then embed the payload's texts in each arrangement that is asked for."""
    from optbench.encoder import load

    answer: Any = None
    request = yield
    engine: Engine = TypeAdapter(Engine).validate_python(payload["engine"])
    with load(Path(payload["path"]), engine=engine) as encoder:
        rows = [encoder.tokenize([text], payload["prompt"])[0][0] for text in payload["texts"]]
        while True:
            arrangement = Arrangement.model_validate(request)
            if arrangement.padding != "none" and min(map(len, rows)) >= encoder.max_tokens:
                answer = {"left_out": f"every text fills the model's longest input, {encoder.max_tokens} tokens: none has room for padding"}
            else:
                vectors = embed_arranged(
                    encoder.embed,
                    rows,
                    arrangement,
                    pad_id=payload["pad_id"],
                    longest=encoder.max_tokens,
                    progress=partial(progress, "embedding"),
                )
                # JSON keeps a float32 exactly, and NaN and infinities too as Python writes it.
                answer = {"vectors": vectors.tolist()}
            request = yield answer
