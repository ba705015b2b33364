"""Arrangements: every text reaches the model as asked, and its vector comes back in its own place."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.measure.arrangement import Arrangement, embed_arranged

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

LONGEST = 64
PAD = 0


def ids_of(*lengths: int) -> list[Ids]:
    """A text a length, every id of its own."""
    numbers = iter(range(1, 1 + sum(lengths)))
    return [np.array([next(numbers) for _ in range(length)], dtype=np.int64) for length in lengths]


class Recorder:
    """A model that sums the ids it attends to and keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[tuple[Ids, Ids]] = []

    def __call__(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        self.batches.append((input_ids.copy(), attention_mask.copy()))
        sums = (input_ids * attention_mask).sum(axis=1)
        return np.stack([sums, attention_mask.sum(axis=1)], axis=1).astype(np.float32)

    def companions(self, first_id: int) -> set[int]:
        """The first ids of the texts that ran beside the one beginning with `first_id`."""
        starts = next(ids[:, 0] for ids, _ in self.batches if first_id in ids[:, 0])
        return set(starts.tolist()) - {first_id}


@pytest.mark.parametrize(
    "arrangement",
    [
        Arrangement(order="reversed"),
        Arrangement(padding="right"),
        Arrangement(padding="left"),
        Arrangement(order="like", size=8),
        Arrangement(order="mixed", size=8),
        Arrangement(order="mixed", size=32),
    ],
    ids=str,
)
def test_every_arrangement_gives_each_text_its_own_vector_in_the_order_of_the_texts(arrangement: Arrangement) -> None:
    rows = ids_of(3, 1, 9, 4, 4, 2, 12, 7, 5, 1, 6)
    vectors = embed_arranged(Recorder(), rows, arrangement, pad_id=PAD, longest=LONGEST)
    # Integers below 2**24 are exact in float32.
    np.testing.assert_array_equal(vectors, [[row.sum(), len(row)] for row in rows])


@pytest.mark.parametrize(("side", "mask"), [("right", [1, 1, 1] + 8 * [0]), ("left", 8 * [0] + [1, 1, 1])])
def test_padding_adds_columns_without_attention_on_its_side(side: Any, mask: list[int]) -> None:
    recorder = Recorder()
    embed_arranged(recorder, ids_of(3), Arrangement(padding=side), pad_id=77, longest=LONGEST)
    ((input_ids, attention_mask),) = recorder.batches
    np.testing.assert_array_equal(attention_mask, [mask])
    np.testing.assert_array_equal(input_ids[attention_mask == 0], 77)
    np.testing.assert_array_equal(input_ids[attention_mask == 1], [1, 2, 3])


def test_padding_doubles_a_long_text_and_ends_at_the_longest_input() -> None:
    recorder = Recorder()
    embed_arranged(recorder, ids_of(20, 40, 64), Arrangement(padding="right"), pad_id=PAD, longest=LONGEST)
    assert [ids.shape for ids, _ in recorder.batches] == [(1, 40), (1, 64), (1, 64)]


def test_every_batch_is_full_so_that_no_text_has_fewer_companions() -> None:
    recorder = Recorder()
    embed_arranged(recorder, ids_of(*range(1, 20)), Arrangement(order="mixed", size=8), pad_id=PAD, longest=LONGEST)
    assert [len(ids) for ids, _ in recorder.batches] == [8, 8, 8]


def test_two_sets_of_companions_differ_in_texts_and_in_length() -> None:
    rows = ids_of(*range(1, 33))
    like, mixed = Recorder(), Recorder()
    embed_arranged(like, rows, Arrangement(order="like", size=8), pad_id=PAD, longest=LONGEST)
    embed_arranged(mixed, rows, Arrangement(order="mixed", size=8), pad_id=PAD, longest=LONGEST)
    for row in rows:
        assert like.companions(row[0]) & mixed.companions(row[0]) < like.companions(row[0])
    # Of like length: little padding. Across lengths: the shortest stands beside one of nearly the longest.
    assert [ids.shape[1] for ids, _ in like.batches] == [8, 16, 24, 32]
    assert min(ids.shape[1] for ids, _ in mixed.batches) == 29
