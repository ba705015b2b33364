"""Which texts run together, and the batches that concurrent callers share."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.engines.batching import PADDING_MAX, TOKENS_MAX, Batcher, plan_batches
from optbench.errors import EngineError


def test_batches_are_sorted_longest_first() -> None:
    assert plan_batches([2, 9, 5, 8], 2) == [[1, 3], [2, 0]]


def test_long_texts_share_a_run_only_within_its_tokens() -> None:
    half = TOKENS_MAX // 2
    assert plan_batches([half, half, half], 64) == [[0, 1], [2]]
    assert plan_batches([TOKENS_MAX + 1, TOKENS_MAX + 1], 64) == [[0], [1]]


def test_short_text_is_not_padded_to_a_long_one() -> None:
    assert plan_batches([100, 5, 6], 64) == [[0], [2, 1]]
    assert plan_batches([20, 5], 64) == [[0, 1]]


def test_text_without_a_token_is_in_no_batch() -> None:
    assert plan_batches([0, 3], 64) == [[1]]
    assert plan_batches([], 64) == []


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 64))
def test_each_text_is_in_one_batch_within_the_limits(lengths: list[int], batch_size: int) -> None:
    batches = plan_batches(lengths, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = lengths[batch[0]]
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * longest <= TOKENS_MAX
        assert all(0 <= longest - lengths[index] <= max(lengths[index], PADDING_MAX) for index in batch)


class Server:
    """Answers a number with its double; the first batch waits until `go` is set, as a long run would."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.begun.set()
        self.go.wait(60)
        if 13 in items:
            raise EngineError("13 fails")
        return [2 * item for item in items]


@pytest.fixture
def busy() -> Callable[..., tuple[Server, Batcher[int, int], Future[int]]]:
    """A batcher whose server is busy with item 0."""

    def start(size_max: int) -> tuple[Server, Batcher[int, int], Future[int]]:
        server = Server()
        batcher = Batcher(server, delay_s=0.0, size_max=size_max)
        first = batcher.submit(0)
        assert server.begun.wait(60)
        return server, batcher, first

    return start


def test_lone_item_is_served_at_once_and_those_that_come_meanwhile_together(
    busy: Callable[..., tuple[Server, Batcher[int, int], Future[int]]],
) -> None:
    server, batcher, first = busy(3)
    others = [batcher.submit(item) for item in (1, 2, 3, 4)]
    server.go.set()
    assert [each.result(60) for each in (first, *others)] == [0, 2, 4, 6, 8]
    assert server.batches == [[0], [1, 2, 3], [4]]
    batcher.close()


def test_item_waits_for_company_within_the_delay() -> None:
    server = Server()
    server.go.set()
    # The delay would outlast the test: the batch begins because it is full.
    with Batcher(server, delay_s=600.0, size_max=2) as batcher:
        futures = [batcher.submit(item) for item in (1, 2)]
        assert [each.result(60) for each in futures] == [2, 4]
        assert server.batches == [[1, 2]]
    # And without company, because the delay has passed.
    with Batcher(server, delay_s=0.001, size_max=2) as batcher:
        assert batcher.submit(3).result(60) == 6


def test_error_reaches_the_callers_of_its_batch_only(busy: Callable[..., tuple[Server, Batcher[int, int], Future[int]]]) -> None:
    server, batcher, first = busy(2)
    failing, beside, later = (batcher.submit(item) for item in (13, 1, 2))
    server.go.set()
    assert (first.result(60), later.result(60)) == (0, 4)
    for each in (failing, beside):
        with pytest.raises(EngineError, match="13 fails"):
            each.result(60)
    batcher.close()


def test_cancelled_item_is_not_served(busy: Callable[..., tuple[Server, Batcher[int, int], Future[int]]]) -> None:
    server, batcher, _ = busy(2)
    cancelled, kept = batcher.submit(1), batcher.submit(2)
    assert cancelled.cancel()
    server.go.set()
    assert kept.result(60) == 4
    assert server.batches == [[0], [2]]
    batcher.close()


def test_closing_serves_what_waits_and_refuses_more(busy: Callable[..., tuple[Server, Batcher[int, int], Future[int]]]) -> None:
    server, batcher, _ = busy(1)
    waiting = batcher.submit(1)
    server.go.set()
    batcher.close()
    batcher.close()
    assert waiting.result(0) == 2
    with pytest.raises(EngineError, match="closed"):
        batcher.submit(2)


def test_server_that_answers_too_few_fails_its_callers() -> None:
    with Batcher[int, int](lambda _: [], delay_s=0.0, size_max=1) as batcher, pytest.raises(ValueError, match="zip"):
        batcher.submit(1).result(60)
