"""Run one function of optbench in a fresh process, and exchange JSON lines with it.

Timing needs a process that nothing else has warmed or filled, a step's peak memory is only visible in a process of its own, and memory
that a library leaks is freed when that process ends. The parent blocks on a pipe and never spins. The child dies with its parent (Linux:
PR_SET_PDEATHSIG), so a `kill -9` leaves nothing running. Linux ties this to the parent's thread: the thread that started a worker must
outlive it.
"""

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from optbench import errors
from optbench.errors import MachineError, OptbenchError
from optbench.machine.extras import missing_extra
from optbench.machine.progress import Progress

__all__ = ["Serving", "Worker", "peak_rss_bytes"]

Serving = Callable[[dict[str, Any], Progress], Iterator[Any]]
"""What a worker runs: `next` prepares it, and each `send` of a request yields the answer."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STDERR_TAIL_BYTES = 4000
# optbench's own folder comes last, so that nothing beside it hides a module of the standard library.
START = "import sys; sys.path.append(sys.argv[1]); from optbench.machine.worker import main; main()"


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes, file-backed pages included."""
    # getrusage carries the parent's peak over fork and exec; VmHWM starts at zero.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # gVisor's kernel has no VmHWM


def _inherited(python: Path | None) -> dict[str, str]:
    """This process's environment; for another interpreter, without the variables that lead to this one's packages."""
    hidden = () if python is None else ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


class Worker:
    """A child process that serves one function.

    The function takes the payload and a `Progress`. It is a generator that is sent each request and yields its answer.
    """

    def __init__(
        self, function: Serving, payload: Mapping[str, Any], environment: Mapping[str, str] | None = None, *, python: Path | None = None
    ) -> None:
        """Start the process; it imports nothing until the first request.

        Args:
            function: at the top of a module; the child gets its name, and imports that module and no other.
            payload: JSON-serializable argument.
            environment: variables set for the child only, such as `ONEDNN_MAX_CPU_ISA`.
            python: the interpreter of another virtual environment, 3.11 or later, for libraries that cannot be installed beside this
                one's; optbench itself need not be installed there.
        """
        self.target = target = f"{function.__module__}:{function.__qualname__}"
        home = Path(__file__).parents[2]
        first = json.dumps({"target": target, "payload": payload})
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        self._requests = os.fdopen(request_write, "w", encoding="utf-8")
        self._replies = os.fdopen(reply_read, encoding="utf-8")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed in close()
        try:
            self._process = subprocess.Popen(
                # -P: the current folder, perhaps a stranger's model, is not searched for modules.
                [str(python or sys.executable), "-P", "-c", START, *map(str, (home, request_read, reply_write, os.getpid()))],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,  # what a library prints must not reach optbench's stdout
                stderr=self._stderr,
                pass_fds=(request_read, reply_write),
                env={**_inherited(python), **(environment or {})},
            )
        except OSError as error:
            for file in (self._requests, self._replies, self._stderr):
                file.close()
            raise MachineError(f"cannot start a process for {target}: {error.strerror}; close other programs, then run again") from error
        finally:
            os.close(request_read)
            os.close(reply_write)
        try:
            self._send(first)
        except BaseException:
            self.close()
            raise

    def _send(self, line: str) -> None:
        try:
            self._requests.write(line + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._death() from None

    def request(self, message: Mapping[str, Any], on_progress: Progress | None = None) -> Any:
        """Send one request and block until its answer.

        After an error from the child, the next request starts the function again.

        Raises:
            OptbenchError: what the child raised, with its class and message.
            MachineError: the child was killed; names the signal and the usual cause.
        """
        self._send(json.dumps(message))
        for line in self._replies:
            if not line.endswith("\n"):
                break  # killed in the middle of its answer
            reply = json.loads(line)
            if "progress" in reply:
                if on_progress is not None:
                    on_progress(*reply["progress"])
                continue
            if "error" in reply:
                error_class = getattr(errors, reply["error"], None)
                if error_class is None:
                    raise RuntimeError(f"{self.target} failed in its process:\n{reply['message']}")
                raise error_class(reply["message"])
            return reply["answer"]
        raise self._death()

    def _death(self) -> Exception:
        code = self._process.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - STDERR_TAIL_BYTES))
        tail = self._stderr.read().decode(errors="replace").strip()
        if code < 0:
            name = signal.Signals(-code).name
            if code == -signal.SIGKILL:
                cause = "usually by the kernel when memory runs out: close other programs or use a machine with more, then run again"
            else:
                cause = "most likely a fault in a library that it calls: report it with this output"
            return MachineError(f"the process of {self.target} was killed by {name}, {cause}. {tail}".rstrip())
        return RuntimeError(f"the process of {self.target} ended with status {code}:\n{tail}")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def close(self) -> None:
        """Kill the process; calling it twice is harmless."""
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        if self._process.poll() is None:
            # It holds nothing to save: the parent seals what it wrote, or deletes it.
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(requests: TextIO, replies: TextIO) -> None:
    """The child's side: import the target, then answer requests until the parent closes the pipe."""

    def send(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    def report_progress(message: str, share: float | None) -> None:
        send({"progress": [message, share]})

    first = json.loads(requests.readline())
    module_name, function_name = first["target"].split(":")
    handler = None
    for line in requests:
        try:
            if handler is None:
                function: Any = getattr(importlib.import_module(module_name), function_name)
                handler = function(first["payload"], report_progress)
                next(handler)
            send({"answer": handler.send(json.loads(line))})
        except Exception as error:
            handler = None
            send(_error_reply(error, first["target"]))


def _error_reply(error: Exception, target: str) -> dict[str, str]:
    """What the parent raises for an error: the nearest class of errors.py, or for a bug a message with the traceback."""
    if isinstance(error, MemoryError):
        error = MachineError(f"{target}: out of memory; close other programs or use a machine with more, then run again")
    elif isinstance(error, ModuleNotFoundError):
        error = missing_extra(error, target) or error
    if not isinstance(error, OptbenchError):
        return {"error": "bug", "message": traceback.format_exc()}
    nearest = next(each.__name__ for each in type(error).__mro__ if each.__module__ == errors.__name__)
    return {"error": nearest, "message": str(error)}


def main() -> None:
    """Run as the child: `START home request_fd reply_fd parent_pid`."""
    request_fd, reply_fd, parent = (int(argument) for argument in sys.argv[2:])
    # The parent gets Ctrl-C too, and what `timeout` sends to a process group; it kills this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN, which programs that a library starts would inherit.
        signal.signal(number, lambda *_: None)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    for inherited in (request_fd, reply_fd):
        os.set_inheritable(inherited, False)  # a program that a library starts must not hold the pipes open
    with os.fdopen(request_fd, encoding="utf-8") as requests, os.fdopen(reply_fd, "w", encoding="utf-8") as replies:
        serve(requests, replies)
