"""Token ids of texts of different lengths as one batch: what is padding, and on which side."""

import numpy as np

from optbench.model.padding import pad_batch

ROWS = [np.array([5, 6, 7]), np.array([8])]


def test_shorter_rows_are_padded_to_the_longest_and_masked() -> None:
    ids, mask = pad_batch(ROWS, pad_id=1)
    assert ids.dtype == mask.dtype == np.int64
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_length_and_side_of_the_padding_can_be_chosen() -> None:
    ids, mask = pad_batch(ROWS, pad_id=1, length=4, side="left")
    assert ids.tolist() == [[1, 5, 6, 7], [1, 1, 1, 8]]
    assert mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
