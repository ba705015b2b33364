"""Ways to present the same texts to a model: alone, in another order, padded, or in batches."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress
from optbench.measure.subject import Subject
from optbench.model.padding import pad_batch

__all__ = ["ALONE", "Arrangement", "embed_arranged", "serve_arrangements"]

Vectors = NDArray[np.float32]
# Padding doubles a text's columns, and adds at least this many.
PADDING_MIN = 8


class Arrangement(Frozen):
    """How the texts of one pass are ordered, batched and padded.

    Attributes:
        order: `like` batches texts of similar length; `mixed` spreads the lengths over each batch.
        size: texts per batch.
        padding: the side on which each text, run alone, is padded to about twice its length.
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

    `embed` takes input_ids and attention_mask, each (batch, tokens). A text of `longest` tokens, the model's maximum, is not padded.

    Returns:
        (texts, dimension), in the order of `rows`.
    """
    order = _order(rows, arrangement)
    found: dict[int, Vectors] = {}
    for start in range(0, len(order), arrangement.size):
        progress(start / len(order))
        measured = order[start : start + arrangement.size]
        # The last batch is filled up with texts of the first, so that all batches have the same size.
        batch = [rows[index] for index in [*measured, *order[: arrangement.size - len(measured)]]]
        length = max(map(len, batch))
        if arrangement.padding == "none":
            vectors = embed(*pad_batch(batch, pad_id))
        else:
            length = max(length, min(longest, length + max(length, PADDING_MIN)))
            vectors = embed(*pad_batch(batch, pad_id, length=length, side=arrangement.padding))
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


def serve_arrangements(payload: dict[str, Any], progress: Progress) -> Generator[Any, dict[str, Any], None]:
    """Worker process: open the subject once, then embed the payload's texts in each requested arrangement."""
    from optbench.encoder import load

    answer: Any = None
    request = yield
    subject = Subject.received(payload)
    with load(subject.artifact.path, engine=subject.engine) as encoder:
        rows = [encoder.tokenize([text], payload["prompt"])[0][0] for text in payload["texts"]]
        while True:
            arrangement = Arrangement.model_validate(request)
            if arrangement.padding != "none" and min(map(len, rows)) >= encoder.max_tokens:
                answer = {"left_out": f"every text has the model's maximum of {encoder.max_tokens} tokens and cannot be padded"}
            else:
                vectors = embed_arranged(
                    encoder.embed,
                    rows,
                    arrangement,
                    pad_id=payload["pad_id"],
                    longest=encoder.max_tokens,
                    progress=partial(progress, "embedding"),
                )
                # Python's JSON represents every float32 exactly, NaN and infinities included.
                answer = {"vectors": vectors.tolist()}
            request = yield answer
