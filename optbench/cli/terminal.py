"""What the command line prints: tables and JSON on stdout; warnings and errors on stderr. `progress` shows how far a command is."""

import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optbench.errors import MachineError
from optbench.report.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from optbench.report.summary import Summary
    from optbench.report.table import Table

__all__ = [
    "OutputClosed",
    "WarningHandler",
    "counted",
    "is_stdout_error",
    "open_streams",
    "print_error",
    "print_heading",
    "print_json",
    "print_line",
    "print_stderr",
    "print_summary",
    "print_tables",
    "print_text",
    "print_warnings",
    "unwritable_stdout",
]

# The form of every --json document, described in docs/json.md; raised when a key changes its meaning or is removed.
JSON_SCHEMA_VERSION = 1
STDOUT, STDERR = 1, 2
# Where no terminal limits it, a summary has one line an entry.
WIDE = 10_000


class OutputClosed(Exception):  # noqa: N818  # not an error
    """The reader of stdout stopped before everything was written, as `head` does: the command ends quietly."""


class WarningHandler(logging.Handler):
    """Prints log records as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record's message."""
        print_warnings([record.getMessage()])


def open_streams() -> None:
    """Check that there is a stdout to print on, before any work; a closed stderr becomes /dev/null.

    Raises:
        MachineError: stdout is closed, and the next file to be opened would take its place.
    """
    if sys.stderr is None:
        _discard(STDERR)
        sys.stderr = os.fdopen(STDERR, "w", closefd=False)
    if sys.stdout is None:
        _discard(STDOUT)
        sys.stdout = os.fdopen(STDOUT, "w", closefd=False)
        raise MachineError("stdout is closed, so nothing can be printed; redirect it to a file or to /dev/null")


def is_stdout_error(error: BaseException) -> bool:
    """Whether click failed to print: its `echo` writes to stdout, and its error does not name the stream."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, OSError) and bool(frames) and frames[-1].name == "echo"


def _discard(stream: int) -> None:
    """Send a stream to /dev/null: Python flushes what is left of its buffer at exit, and would fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    if devnull != stream:
        os.dup2(devnull, stream)
        os.close(devnull)


@contextmanager
def _flushed_stdout() -> Iterator[None]:
    """Flush stdout at the end, since what fails when the interpreter exits can no longer be caught."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(STDOUT)
        raise OutputClosed from None
    except OSError as error:
        raise unwritable_stdout(error) from error


def unwritable_stdout(error: OSError) -> MachineError:
    """The error for a stdout that takes nothing more, such as a file on a full disk."""
    _discard(STDOUT)
    return MachineError(f"stdout: cannot be written: {error.strerror}; free some space, or redirect it elsewhere")


def _console() -> "Console":
    from rich.console import Console

    class Stdout(Console):
        def on_broken_pipe(self) -> None:
            # rich would exit with 1, the status of a failed verdict.
            raise BrokenPipeError

    return Stdout(markup=False, emoji=False, highlight=False)


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_text(text: str) -> None:
    """Print text unchanged on stdout."""
    with _flushed_stdout():
        print(text)  # noqa: T201


def print_line(text: str) -> None:
    """Print text on stdout without control characters."""
    print_text(printable(text))


def print_stderr(text: str) -> None:
    """Print text on stderr without control characters; where stderr cannot be written, the exit status still tells."""
    try:
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        _discard(STDERR)


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

    with _flushed_stdout():
        console = _console()
        for table in tables:
            if table is not None and table.rows:
                console.print(*to_rich(table, console.width), "", sep="\n")


def print_heading(text: str) -> None:
    """Print a heading between rules on stdout."""
    from rich.text import Text

    with _flushed_stdout():
        _console().rule(Text(printable(text)))


def print_summary(summary: "Summary") -> None:
    """Print a summary; on a terminal, long lines continue below their start."""
    from rich.table import Table as Grid
    from rich.text import Text

    from optbench.report.fitted import STYLES

    with _flushed_stdout():
        console = _console()
        if not console.is_terminal:
            console.width = WIDE
        grid = Grid.grid(padding=(0, 2, 0, 0))
        for label, text in summary.lines:
            grid.add_row(Text(label), Text(printable(text), overflow="fold"))
        console.print(Text(printable(summary.verdict), style=STYLES.get(summary.outcome, "")), grid, sep="\n")


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings on stderr, one per line."""
    for warning in warnings:
        print_stderr(f"warning: {warning}")
