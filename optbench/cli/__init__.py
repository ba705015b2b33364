"""The command line.

In: arguments. Out: tables on stdout, progress on stderr, an exit status. One file a group of commands; no command holds logic of its own.
"""

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

import optbench
from optbench.cli import init as starting
from optbench.cli import measuring, recipes, records, reporting, shipping
from optbench.cli.options import ERROR_STATUS
from optbench.cli.terminal import OutputClosed, print_error, print_text
from optbench.errors import OptbenchError

__all__ = ["app", "main"]

# In the order that --help lists them.
COMMANDS = (
    starting.init,
    recipes.check,
    recipes.schema,
    recipes.plan,
    recipes.apply,
    reporting.report,
    records.compare,
    records.gate,
    measuring.measure,
    measuring.stability,
    measuring.scenarios,
    measuring.probe,
    shipping.verify,
    shipping.extend,
    shipping.publish,
    shipping.pull,
)

# A shell's status of a program that SIGPIPE ended. It is not 0: the verdict may not have been reached.
OUTPUT_CLOSED_STATUS = 141
EXIT_STATUS = "Exit status: 0 done or pass, 1 fail, 2 error, 3 inconclusive, 130 stopped by Ctrl-C."

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a text-embedding encoder fast on CPUs, and prove it.",
    epilog=EXIT_STATUS,
)

for command in COMMANDS:
    app.command(epilog=EXIT_STATUS)(command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print_text(optbench.__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False)])
    try:
        try:
            app()
        except OptbenchError as error:
            print_error(error, as_json="--json" in sys.argv)
            sys.exit(ERROR_STATUS)
    except OutputClosed:
        sys.exit(OUTPUT_CLOSED_STATUS)
