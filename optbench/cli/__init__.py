"""The command line.

What for: the `optbench` command; `COMMANDS` lists the commands, and the files group them by what they work on.
In: arguments. Out: tables on stdout, progress and errors on stderr, an exit status.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import optbench
from optbench.cli.terminal import (
    OutputClosed,
    WarningHandler,
    is_stdout_error,
    open_streams,
    print_error,
    print_text,
    unwritable_stdout,
)
from optbench.errors import MachineError, OptbenchError
from optbench.machine.extras import missing_extra

__all__ = ["app", "main"]

# Each command's file, in the order that --help lists them. Its function has the command's name.
COMMANDS = {
    "init": "init",
    "check": "recipes",
    "schema": "recipes",
    "plan": "recipes",
    "apply": "recipes",
    "report": "report",
    "compare": "records",
    "gate": "records",
    "measure": "measure",
    "stability": "measure",
    "scenarios": "measure",
    "probe": "measure",
    "verify": "artifacts",
    "extend": "artifacts",
    "publish": "artifacts",
    "pull": "artifacts",
}

ERROR_STATUS = 2
# What a shell reports for a program that SIGPIPE ended. Not 0: the command may not have reached its verdict.
OUTPUT_CLOSED_STATUS = 141
INTERRUPTED_STATUS = 130
EXIT_STATUS = "Exit status: 0 success or pass, 1 fail, 2 error, 3 inconclusive, 130 interrupted."


class _Commands(Mapping[str, Any]):
    """The commands by name, each imported when it is first looked up: a short command does not pay for the options of all the others."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _command(name: str) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command(epilog=EXIT_STATUS)(getattr(import_module(f"optbench.cli.{COMMANDS[name]}"), name))
    return typer.main.get_command(single)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": _Commands()})


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make text-embedding encoders fast on CPUs, with proof that their accuracy holds.",
    epilog=EXIT_STATUS,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print_text(optbench.__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its status."""
    # Otherwise pydantic searches every installed distribution for plugins, which takes a tenth of the start-up time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    logging.basicConfig(level=logging.WARNING, handlers=[WarningHandler()])
    try:
        open_streams()
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
    except SystemExit as stopped:
        # Click exits with 1, the status of a failed verdict, on a closed pipe and on an EOFError.
        reason = stopped.__context__
        if isinstance(reason, BrokenPipeError):
            sys.exit(OUTPUT_CLOSED_STATUS)
        if isinstance(reason, typer.Abort):
            sys.exit(_report(reason.__cause__ or reason))
        raise
    # A panic in a library written in Rust is no Exception. Whatever it is, 1 would mean that a verdict failed.
    except BaseException as error:
        sys.exit(_report(error))


def _report(error: BaseException) -> int:
    """Print an error and return the exit status."""
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error, "this command") or error
    elif isinstance(error, OSError) and is_stdout_error(error):
        error = unwritable_stdout(error)
    try:
        if not isinstance(error, OutputClosed):
            print_error(error, as_json="--json" in sys.argv, is_bug=not isinstance(error, OptbenchError))
            return ERROR_STATUS
    except OutputClosed:
        pass
    except MachineError:  # stdout cannot take the document; stderr has the message
        return ERROR_STATUS
    return OUTPUT_CLOSED_STATUS
