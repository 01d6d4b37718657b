"""The command line. Each command imports what it needs when it runs, so that `flatlab --help` answers at once."""

import errno
import os
import sys
import time
import traceback
import warnings
from itertools import pairwise
from typing import Annotated, NoReturn

import typer

from flatlab.cli.clients import clients
from flatlab.cli.demo import demo
from flatlab.cli.density import density
from flatlab.cli.doctor import doctor
from flatlab.cli.eigs import eigs
from flatlab.cli.figures import figures
from flatlab.cli.node import node
from flatlab.cli.presets import presets
from flatlab.cli.report import report
from flatlab.cli.reproduce import reproduce
from flatlab.cli.surface import surface
from flatlab.cli.trace import trace
from flatlab.cli.train import train
from flatlab.cli.verify import verify
from flatlab.cores import is_one_of_many
from flatlab.errors import SAID, UsageError, exit_code
from flatlab.terminal.console import console
from flatlab.version import __version__

UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the operating system says of a full disk, and of a file or folder that this user may not use."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(train)
app.command()(node)
app.command()(eigs)
app.command()(clients)
app.command()(trace)
app.command()(density)
app.command()(surface)
app.command()(verify)
app.command()(presets)
app.command()(reproduce)
app.command()(figures)
app.command()(report)
app.command()(doctor)


SHARED_BY_PROCESSES = ("eigs", "clients", "trace", "density", "surface", "verify")
"""Commands whose work the processes of torchrun share."""

SECONDS_TO_SPEAK = 1.0
"""How long a process that fails after another waits, lest torchrun ends that one before it has spoken."""


@app.callback(invoke_without_command=True)
def flatlab(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """How flat is a federated minimum, and why? Train with and without MAN, then measure."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    command = context.invoked_subcommand
    if is_one_of_many() and command not in SHARED_BY_PROCESSES:
        raise UsageError(f"flatlab {command} does not share its work among processes: start it without torchrun.")


def main() -> None:
    """Entry point: every error becomes a sentence and an exit code (2 usage, 1 failed, 130 or 143 cut off)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait starve a busy machine
    debug = "--debug" in sys.argv
    sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != "--debug")]
    warnings.formatwarning = lambda message, *_: f"flatlab: {message}\n"
    console.stderr = "--json=-" in sys.argv or ("--json", "-") in pairwise(sys.argv)
    try:
        app(prog_name="flatlab")  # also of python -m flatlab, which no shell completes
    except SAID as error:
        _fail(str(error), exit_code(error), debug)
    except OSError as error:
        if error.errno not in UNWRITTEN:
            _unexpected(error, debug)
        name = error.filename or "The output"
        _fail(f"{name} cannot be written or read ({error.strerror}); what was saved before stays.", 1, debug)
    except Exception as error:
        _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> NoReturn:
    _fail(f"Unexpected {type(error).__name__}: {error}. Run again with --debug for the details.", 1, debug)


def _fail(sentence: str, code: int, debug: bool) -> NoReturn:
    if is_one_of_many():
        from flatlab.measuring.ranks import is_first_to_fail

        if not is_first_to_fail(" ".join(sys.argv)):
            time.sleep(SECONDS_TO_SPEAK)
            sys.exit(code)
    if debug:
        traceback.print_exc()
    typer.echo(f"flatlab: {sentence}", err=True)
    sys.exit(code)
