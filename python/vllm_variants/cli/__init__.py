"""The command line: one file a subcommand, gathered here.

`main` is the console script. It turns every `Error` into one sentence on stderr and its exit
code; Ctrl-C and SIGTERM end in exit code 130 after the work has cleaned up behind itself.
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
from vllm_variants.cli.output import err
from vllm_variants.cli.pin import pin
from vllm_variants.cli.slim import slim
from vllm_variants.cli.test import test
from vllm_variants.cli.verify import verify
from vllm_variants.errors import Error, ExitCode, Interrupted

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


app.command("list")(list_variants)
app.command()(detect)
app.command()(build)
app.command()(audit)
app.command()(slim)
app.command()(verify)
app.command()(doctor)
app.command()(gc)
if data.checkout():  # what only makes sense beside the sources
    app.command()(docs)
    app.command()(lock)
    app.command()(pin)
    app.command(
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(test)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def main() -> None:
    """Run the command line and exit with one of `errors.ExitCode`."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    try:
        app(prog_name="vllm-variants")
    except Error as error:
        err.print("[red]error:[/red] ", end="")
        err.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        err.print(f"interrupted: {str(stop) or 'nothing half-done was left behind'}", markup=False)
        sys.exit(ExitCode.INTERRUPTED)
