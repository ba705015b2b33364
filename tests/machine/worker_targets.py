"""Functions that tests/test_worker.py runs in worker processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from optbench import errors
from optbench.errors import StepError
from optbench.machine.worker import peak_rss_bytes

Progress = Callable[[str, float | None], None]


class TooNarrowError(StepError):
    """An error that errors.py does not know."""


def echo(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    request = yield
    while True:
        request = yield {"payload": payload, "request": request}


def tell_environment(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    yield os.environ.get(payload["name"])


def fail(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    request: Any = yield
    while True:
        if "class" in request:
            raise getattr(errors, request["class"])(request["words"])
        request = yield "fine"


def fail_narrowly(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    raise TooNarrowError("layer 3 is too narrow")


def divide_by_zero(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    yield 1 // 0


def exhaust_memory(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    raise MemoryError


def answer_with_an_object(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    yield object()


def print_everywhere(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    sys.stdout.write("printed\n")
    sys.stderr.write("complained\n")
    os.write(1, b"written below python\n")
    subprocess.run(["echo", "from a program"], check=True)
    yield "answer"


def report(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    progress("half way", 0.5)
    progress("who knows", None)
    yield "answer"


def end_by(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    os.write(2, b"last words\n")
    os.kill(os.getpid(), payload["signal"])
    yield "survived"


def end_within_an_answer(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    os.write(int(sys.argv[3]), b'{"answer": "a lo')
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def end_quietly(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    os.write(2, b"last words\n")
    os._exit(7)


def hang(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    progress("hanging", None)
    signal.pause()
    yield


def read_peak(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    before = peak_rss_bytes()
    block = bytearray(payload["bytes"])
    after = peak_rss_bytes()
    yield [before, after, len(block)]


def find_module(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    yield
    import this_folder_is_hostile  # type: ignore[import-not-found]  # noqa: F401
