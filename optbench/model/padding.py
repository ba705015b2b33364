"""Token ids of texts of different lengths as one batch."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["pad_batch"]


def pad_batch(
    rows: Sequence[NDArray[np.int64]], pad_id: int, *, length: int | None = None, side: Literal["left", "right"] = "right"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad at least one row of token ids, each (tokens,), to the longest row, or to a `length` that is no shorter.

    Returns:
        input_ids and attention_mask, each (len(rows), length) int64.
    """
    length = max(map(len, rows)) if length is None else length
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask
