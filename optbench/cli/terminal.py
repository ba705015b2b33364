"""What the command line prints: tables and JSON on stdout; progress, warnings and errors on stderr."""

import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from optbench.report.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from optbench.report.table import Table

__all__ = [
    "OutputClosed",
    "WarningHandler",
    "Watch",
    "counted",
    "print_error",
    "print_heading",
    "print_json",
    "print_line",
    "print_stderr",
    "print_tables",
    "print_text",
    "print_warnings",
    "watching",
]

# The form of every --json document, described in docs/json.md; raised when a key changes its meaning or is removed.
JSON_SCHEMA_VERSION = 1


class OutputClosed(Exception):  # noqa: N818  # not an error
    """The reader of stdout stopped before everything was written, as `head` does: the command ends quietly."""


class WarningHandler(logging.Handler):
    """Prints log records as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record's message."""
        print_warnings([record.getMessage()])


class Watch:
    """Progress on stderr: a live line on a terminal, otherwise one line per finished stage."""

    def __init__(self, progress: "Progress | None" = None) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._label, self._start = "", 0.0

    def begin(self, label: str) -> None:
        """Show that a stage has begun."""
        self._label, self._start = label, time.monotonic()
        if self._progress is not None:
            self._task = self._progress.add_task(label, total=None, message="")

    def update(self, message: str, share: float | None) -> None:
        """Show how far the stage is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, message=message, total=1.0 if share is not None else None, completed=share or 0.0)

    def end(self, outcome: str) -> None:
        """Print the stage, its seconds and its outcome."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        print_stderr(f"{time.monotonic() - self._start:7.1f} s  {self._label}: {outcome}")


@contextmanager
def watching() -> Iterator[Watch]:
    """Show progress during the `with` block, and explain on Ctrl-C that finished work is kept."""
    try:
        if not sys.stderr.isatty():
            yield Watch()
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        message = TextColumn("{task.fields[message]}", markup=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), message, TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield Watch(progress)
    except KeyboardInterrupt:
        print_stderr("interrupted; finished work is kept, and the next run resumes from it")
        raise


@contextmanager
def _closable_stdout() -> Iterator[None]:
    """Flush stdout at the end, since a pipe that breaks when the interpreter exits can no longer be caught."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes the rest of the buffer at exit: let it go to /dev/null.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        raise OutputClosed from None


def _console() -> "Console":
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            # rich would exit with 1, the status of a failed verdict.
            raise BrokenPipeError

    return Stdout()


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_text(text: str) -> None:
    """Print text unchanged on stdout."""
    with _closable_stdout():
        print(text)  # noqa: T201


def print_line(text: str) -> None:
    """Print text on stdout without control characters."""
    print_text(printable(text))


def print_stderr(text: str) -> None:
    """Print text on stderr without control characters."""
    with suppress(BrokenPipeError):
        print(printable(text), file=sys.stderr)  # noqa: T201


def print_json(command: str, **document: Any) -> None:
    """Print a command's JSON document."""
    print_text(json.dumps({"schema_version": JSON_SCHEMA_VERSION, "command": command, **document}, indent=2))


def print_error(error: BaseException, *, as_json: bool, is_bug: bool = False) -> None:
    """Print an error as one line on stderr, and with `as_json` also as a JSON document; the traceback of a bug goes to a file."""
    message = _bug_message(error) if is_bug else str(error)
    print_stderr(f"error: {message}")
    if as_json:
        print_json("error", error={"type": type(error).__name__, "message": message})


def _bug_message(error: BaseException) -> str:
    """Write the traceback to a file; the message names it."""
    lines = "".join(traceback.format_exception(error))
    about = f"this is a bug in optbench: {' '.join(f'{type(error).__name__}: {error}'.splitlines()[:1])}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="optbench-bug-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"{sys.argv}\n\n{lines}")
    except OSError:
        return f"{about}; please report it with this traceback:\n{lines}"
    return f"{about}; please report it with the traceback in {file.name}"


def print_tables(tables: Sequence["Table | None"]) -> None:
    """Print the tables that have rows; a figure is never broken over two lines."""
    from optbench.report.fitted import to_rich

    with _closable_stdout():
        console = _console()
        for table in tables:
            if table is not None and table.rows:
                console.print(*to_rich(table, console.width), "", sep="\n")


def print_heading(text: str) -> None:
    """Print a heading between rules on stdout."""
    with _closable_stdout():
        _console().rule(printable(text))


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings on stderr, one per line."""
    for warning in warnings:
        print_stderr(f"warning: {warning}")
