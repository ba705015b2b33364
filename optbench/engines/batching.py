"""Which texts run together: many texts of one caller, sorted by length, or single texts of concurrent callers, within a stated delay."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, Self, TypeVar

from optbench.errors import EngineError

__all__ = ["BATCH_MAX", "TOKENS_MAX", "Batcher", "plan_batches"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# A text gets at most as many padding tokens as it has tokens, or this many: another run of a small model costs about as much.
PADDING_MAX = 16
BATCH_MAX = 32
"""Texts of concurrent callers in a batch, unless the caller sets another limit."""
TOKENS_MAX = 512
"""Tokens of a run, unless one text has more: with longer runs the activations leave the core's cache. bench/LOG.md has the figures."""


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divide texts into batches of similar length and at most `TOKENS_MAX` tokens, padding included.

    The longest come first: the first run takes the most memory, so a lack of it shows at once, and the last runs are the shortest, so
    that parallel sessions end together.

    Args:
        lengths: tokens of each text.
        batch_size: the most texts in a batch.

    Returns:
        The indices of the texts of each batch; each text that has a token is in one.
    """
    batches: list[list[int]] = []
    longest, room = 0, 0
    for index in sorted(filter(lengths.__getitem__, range(len(lengths))), key=lambda each: -lengths[each]):
        if not batches or len(batches[-1]) == room or longest - lengths[index] > max(lengths[index], PADDING_MAX):
            batches.append([])
            longest = lengths[index]
            room = min(batch_size, max(1, TOKENS_MAX // longest))
        batches[-1].append(index)
    return batches


class Batcher(Generic[Item, Answer]):
    """Serves what concurrent callers submit in batches, on a thread of its own.

    A batch begins when the previous one is done and `size_max` items wait, or the oldest has waited for `delay_s`. So a batch grows
    with the load: with `delay_s` 0, a caller without company is served at once. Thread-safe.
    """

    def __init__(self, serve: Callable[[list[Item]], Sequence[Answer]], *, delay_s: float, size_max: int) -> None:
        """Start the thread; `serve` returns one answer per item, and is called by this thread only."""
        self._serve, self._delay_s, self._size_max = serve, delay_s, size_max
        self._waiting: deque[tuple[Item, float, Future[Answer]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: a forgotten batcher does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="optbench-batcher", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> Future[Answer]:
        """Queue an item. A future that is cancelled before its batch begins is not served.

        Raises:
            EngineError: closed. The future raises what `serve` raised for its batch.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise EngineError("the batcher is closed; open a new one")
            self._waiting.append((item, time.monotonic() + self._delay_s, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Serve what waits, then end the thread. May be called more than once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while batch := self._next_batch():
            running = [(item, future) for item, _, future in batch if future.set_running_or_notify_cancel()]
            try:
                answers = self._serve([item for item, _ in running]) if running else []
                for (_, future), answer in zip(running, answers, strict=True):
                    future.set_result(answer)
            except BaseException as error:  # the callers get it, and the thread goes on
                for _, future in running:
                    if not future.done():
                        future.set_exception(error)

    def _next_batch(self) -> list[tuple[Item, float, Future[Answer]]]:
        """Wait for a batch; empty once closed and served."""
        with self._changed:
            while not self._closed and len(self._waiting) < self._size_max:
                left_s = self._waiting[0][1] - time.monotonic() if self._waiting else None
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            return [self._waiting.popleft() for _ in range(min(self._size_max, len(self._waiting)))]
