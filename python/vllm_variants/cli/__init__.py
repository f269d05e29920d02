"""The command line: one file a subcommand, gathered here.

`main` is the console script. It turns every `Error`, and whatever the system refuses, into one
sentence on stderr and an exit code; Ctrl-C and SIGTERM end in exit code 130 after the work has
cleaned up behind itself.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from vllm_variants import __version__, data
from vllm_variants.cli.audit import audit
from vllm_variants.cli.build import build
from vllm_variants.cli.detect import detect
from vllm_variants.cli.docs import docs
from vllm_variants.cli.doctor import doctor
from vllm_variants.cli.gc import gc
from vllm_variants.cli.list import list_variants
from vllm_variants.cli.lock import lock
from vllm_variants.cli.output import close_streams, complain, err, open_streams
from vllm_variants.cli.pin import pin
from vllm_variants.cli.slim import slim
from vllm_variants.cli.test import test
from vllm_variants.cli.verify import verify
from vllm_variants.errors import (
    Error,
    ExitCode,
    InputError,
    Interrupted,
    ResourceError,
    UsageError,
    system_error,
)

app = typer.Typer(
    name="vllm-variants",
    help="vLLM for exactly your GPU: list, detect and build per-SM variants.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vllm-variants {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def beside_the_sources(context: typer.Context) -> None:
    """Stands for a command that only a checkout has, where the package was installed."""
    raise UsageError(
        f"`{context.info_name}` works on a checkout, and this vllm-variants was installed as a package",
        hint=f"clone the project and run ./vllm-variants {context.info_name} in it",
    )


app.command("list")(list_variants)
app.command()(detect)
app.command()(build)
app.command()(audit)
app.command()(slim)
app.command()(verify)
app.command()(doctor)
app.command()(gc)
_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
if data.checkout():  # what only makes sense beside the sources
    app.command()(docs)
    app.command()(lock)
    app.command()(pin)
    app.command(add_help_option=False, context_settings=_ANYTHING)(test)
else:
    for name in ("docs", "lock", "pin", "test"):
        app.command(name, hidden=True, add_help_option=False, context_settings=_ANYTHING)(beside_the_sources)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def main() -> None:
    """Run the command line and exit with one of `errors.ExitCode`."""
    open_streams()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    try:
        code = close_streams(_run())
    except Interrupted as stop:
        err.print(f"interrupted: {str(stop) or 'nothing half-done was left behind'}", markup=False)
        code = ExitCode.INTERRUPTED
    for signum in (signal.SIGINT, signal.SIGTERM):  # what is left to do is the interpreter's own end
        signal.signal(signum, signal.SIG_IGN)
    sys.exit(code)


def _run() -> int:
    """Run the command line; the exit code, with the reason on stderr where it is not 0."""
    try:
        app(prog_name="vllm-variants")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Error, OSError, RecursionError, UnicodeError, MemoryError) as failure:
        error = _as_error(failure)
        complain(error)
        return error.exit_code
    return ExitCode.OK


def _as_error(failure: Exception) -> Error:
    """What ended a command, as an `Error`: a sentence of its own, or the system's in our words."""
    if isinstance(failure, Error):
        return failure
    if isinstance(failure, OSError):
        return system_error(failure)
    if isinstance(failure, RecursionError):
        return InputError("something that was given is nested too deeply to be read")
    if isinstance(failure, UnicodeError):
        return InputError(f"text cannot be read or written as it was given: {failure}")
    return ResourceError("memory ran out", hint="vllm-variants doctor says how much there is")
