"""What the command line puts on the terminal: progress and warnings on stderr, tables and JSON on stdout."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from optbench.report.table import Table

__all__ = [
    "OutputClosed",
    "Watch",
    "counted",
    "print_error",
    "print_heading",
    "print_json",
    "print_line",
    "print_tables",
    "print_text",
    "print_warnings",
    "watching",
]

# The form of every --json document, as docs/json.md has it; raised when a key changes its meaning or goes.
JSON_SCHEMA_VERSION = 1


class OutputClosed(Exception):  # noqa: N818  # nobody's error
    """Whoever reads stdout has stopped before all was written, as `head` does: there is no more to do."""


class _Stdout(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the process with the status of a failed verdict.
        raise BrokenPipeError


class Watch:
    """Progress on stderr: a live line on a terminal, one plain line a finished stage elsewhere."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._task: TaskID | None = None
        self._label, self._start = "", 0.0

    def begin(self, label: str) -> None:
        """Show that a stage has begun."""
        self._label, self._start = label, time.monotonic()
        self._task = self._progress.add_task(label, total=None, message="")

    def update(self, message: str, share: float | None) -> None:
        """Show how far it is."""
        if self._task is not None:
            self._progress.update(self._task, message=message, total=1.0 if share is not None else None, completed=share or 0.0)

    def end(self, outcome: str) -> None:
        """Leave a line that says what it took."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._console.print(
            f"{time.monotonic() - self._start:7.1f} s  {self._label}: {outcome}", markup=False, highlight=False, soft_wrap=True
        )


@contextmanager
def watching() -> Iterator[Watch]:
    """Show progress while the work inside lasts, and a last word on Ctrl-C."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[message]}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            yield Watch(progress, console)
    except KeyboardInterrupt:
        console.print("stopped; what had finished is kept, and the next run goes on from there", markup=False, highlight=False)
        raise


@contextmanager
def _stdout() -> Iterator[Console]:
    """Stdout, flushed at the end, since what waits until the interpreter ends fails there where nothing can catch it.

    Raises:
        OutputClosed: from all that writes to it.
    """
    try:
        yield _Stdout()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer is written once more at the end: to nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise OutputClosed from None


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_text(text: str) -> None:
    """Print a text as it is."""
    with _stdout():
        print(text)  # noqa: T201


def print_json(command: str, **document: Any) -> None:
    """Print a command's one JSON document."""
    print_text(json.dumps({"schema_version": JSON_SCHEMA_VERSION, "command": command, **document}, indent=2))


def print_error(error: Exception, *, as_json: bool) -> None:
    """Print an error on stderr, and with --json also as the document."""
    from optbench.report.text import printable

    Console(stderr=True).print(f"error: {printable(str(error))}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json("error", error={"type": type(error).__name__, "message": str(error)})


def print_tables(tables: Sequence["Table | None"]) -> None:
    """Print the tables that have rows, each figure whole however narrow the terminal."""
    from optbench.report.fitted import to_rich

    with _stdout() as console:
        for table in tables:
            if table is not None and table.rows:
                console.print(*to_rich(table, console.width), "", sep="\n")


def print_line(text: str) -> None:
    """Print one line on stdout, whatever its length."""
    from optbench.report.text import printable

    with _stdout() as console:
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def print_heading(text: str) -> None:
    """Print a line over what follows, on stdout."""
    with _stdout() as console:
        console.rule(text)


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings, one a line."""
    from optbench.report.text import printable

    for warning in warnings:
        Console(stderr=True).print(f"warning: {printable(warning)}", markup=False, highlight=False, soft_wrap=True)
