"""The command line: one file a subcommand, gathered here.

`main` is the console script. It turns every `Error` into one sentence on stderr and its exit
code; Ctrl-C and SIGTERM end in exit code 130 after the work has cleaned up behind itself.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from vllm_variants import __version__
from vllm_variants.cli.output import err
from vllm_variants.errors import Error, ExitCode

app = typer.Typer(
    name="vllm-variants",
    help="vLLM for exactly your GPU: list, detect and build per-SM variants.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit with one of `errors.ExitCode`."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = app(standalone_mode=False)
    except Error as error:
        err.print("[red]error:[/red] ", end="")
        err.print(str(error), markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted: nothing half-done was left behind", markup=False)
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(code or ExitCode.OK)
