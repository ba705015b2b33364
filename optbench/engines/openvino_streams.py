"""OpenVINO for many batches: one compiled graph whose streams share its weights, and a window of asynchronous requests."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from optbench.engines.base import Streams
from optbench.engines.contract import INPUTS
from optbench.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import openvino
    from numpy.typing import NDArray

__all__ = ["OpenVinoStreams"]

# Requests in flight per stream: while the caller pads the next batch and copies the last, no stream waits.
REQUESTS_PER_STREAM = 2


class OpenVinoStreams(Streams):
    """A graph compiled for throughput. Each call has its own requests, so calls from several threads share the streams."""

    def __init__(self, compiled: "openvino.CompiledModel", check_ids: "Callable[[NDArray[np.int64]], None]", name: str) -> None:
        """`check_ids` refuses token ids that the graph has no rows for; `name` is the graph's file, for errors."""
        self._compiled: Any = compiled
        self._check_ids, self._name = check_ids, name

    def embed_batches(self, batches: "Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]") -> "Iterator[NDArray[np.float32]]":
        """Start a batch as soon as a request is free."""
        if (compiled := self._compiled) is None:
            raise EngineError(f"{self._name}: the session is closed; open the artifact again")
        free = [compiled.create_infer_request() for _ in range(REQUESTS_PER_STREAM * compiled.get_property("NUM_STREAMS"))]
        running: deque[_Running] = deque()
        try:
            for input_ids, attention_mask in batches:
                self._check_ids(input_ids)
                if not free:
                    yield self._finish(running.popleft(), free)
                running.append(_Running(free.pop(), input_ids, attention_mask))
            while running:
                yield self._finish(running.popleft(), free)
        finally:
            # A request that still runs reads arrays that Python would free.
            for each in running:
                each.abandon()

    def _finish(self, each: "_Running", free: list[Any]) -> "NDArray[np.float32]":
        try:
            rows = each.wait()
        except RuntimeError as error:
            raise EngineError(f"{self._name}: OpenVINO failed on {each.arrays[0].shape} tokens: {str(error).strip()}") from error
        free.append(each.request)
        return rows

    def close(self) -> None:
        """Free the graph, once the calls that use it are done."""
        self._compiled = None


class _Running:
    """A request that has started, and the arrays that it reads in place."""

    def __init__(self, request: Any, *arrays: "NDArray[np.int64]") -> None:
        import numpy as np
        from openvino import Tensor

        self.request = request
        self.arrays = tuple(np.require(array, np.int64, ("C", "W")) for array in arrays)
        for name, array in zip(INPUTS, self.arrays, strict=True):
            request.set_tensor(name, Tensor(array, shared_memory=True))
        request.start_async()

    def wait(self) -> "NDArray[np.float32]":
        self.request.wait()
        # The next run overwrites this memory.
        rows: NDArray[np.float32] = self.request.get_output_tensor(0).data.copy()
        return rows

    def abandon(self) -> None:
        from contextlib import suppress

        with suppress(RuntimeError):
            self.request.wait()
