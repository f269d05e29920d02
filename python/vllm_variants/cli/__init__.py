"""The command line: one file a subcommand, gathered here.

`main` is the console script. It turns every `Error`, and whatever the system refuses, into one
sentence on stderr and an exit code; Ctrl-C and SIGTERM end in exit code 130 after the work has
cleaned up behind itself.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any

import typer

from vllm_variants import __version__, data
from vllm_variants.cli import checkout
from vllm_variants.cli.command import NOT_UNDERSTOOD, Command
from vllm_variants.cli.output import close_streams, complain, err, open_streams
from vllm_variants.errors import (
    Error,
    ExitCode,
    InputError,
    Interrupted,
    UsageError,
    out_of_memory,
    system_error,
)

COMMANDS = (
    "list", "detect", "build", "audit", "report", "slim", "verify", "export", "doctor", "gc", "advisories",
)  # fmt: skip
"""Commands that work everywhere, each in a module of its name, in the order of the help."""
CHECKOUT_COMMANDS = ("docs", "lock", "pin", "release", "lint")
"""Those that work on a checkout."""
_FUNCTIONS = {"list": "list_variants"}


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"vllm-variants {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ExitCode.USAGE)


def only_in_a_checkout(context: typer.Context) -> None:
    """Stands for a command that works on a checkout, where the package was installed."""
    checkout.require(str(context.info_name))


_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def application(only: str | None = None) -> typer.Typer:
    """The command line, with every command or, where it is known which is meant, with that alone.

    Importing the modules of all takes a third of a second. Those that work on a checkout are hidden where
    there is none.
    """
    app = typer.Typer(
        name="vllm-variants",
        help="vLLM for exactly your GPU: list, detect and build per-SM variants.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name in COMMANDS:
        if only in (None, name):
            app.command(name, cls=Command)(_function(name))
    for name in CHECKOUT_COMMANDS:
        if only not in (None, name):
            continue
        if data.checkout():
            app.command(name, cls=Command)(_function(name))
        else:
            app.command(name, hidden=True, add_help_option=False, context_settings=_ANYTHING)(
                only_in_a_checkout
            )
    if only in (None, "test"):
        hidden = not data.checkout()
        app.command(hidden=hidden, add_help_option=False, context_settings=_ANYTHING)(_function("test"))
    return app


def _function(name: str) -> Callable[..., None]:
    function: Callable[..., None] = getattr(
        import_module(f"vllm_variants.cli.{name}"), _FUNCTIONS.get(name, name)
    )
    return function


def __getattr__(name: str) -> typer.Typer:
    """`app`: the command line with every command, made when somebody asks for it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = whole = application()
    return whole


_ONE_WISH = 1.0
"""Seconds in which further signals are the same wish: Ctrl-C hit twice, a terminal's and a supervisor's."""
_heard_at = -math.inf


def _stop(signum: int, frame: FrameType | None) -> None:
    """Raise `Interrupted`, once: what comes right behind would end the cleaning up."""
    global _heard_at
    now = time.monotonic()
    if now - _heard_at > _ONE_WISH:
        _heard_at = now
        raise Interrupted


def _when_stopped(do: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, do)


def _heard_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that came while Python could not raise it, in a callback of its own, comes again shortly."""
    global _heard_at
    if issubclass(unraisable.exc_type, Interrupted):
        _heard_at = -math.inf
        again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command line and exit with one of `errors.ExitCode`."""
    global _heard_at
    open_streams()
    sys.unraisablehook, _heard_at = _heard_again, -math.inf
    try:
        _when_stopped(_stop)
        code = close_streams(_run())
        _when_stopped(signal.SIG_IGN)  # inside: what came just before is an interruption like any other
    except (Interrupted, RuntimeError) as end:
        _when_stopped(signal.SIG_IGN)
        stop = _interruption(end)
        err.print(f"interrupted: {str(stop) or 'nothing half-done was left behind'}")
        code = ExitCode.INTERRUPTED
    sys.exit(code)


def _interruption(end: BaseException) -> Interrupted:
    """The interruption that `end` is; or that it wraps, as Python 3.11 does with one in `__set_name__`.

    Raises `end` itself where it is none.
    """
    cause = end if isinstance(end, Interrupted) else end.__cause__
    if isinstance(cause, Interrupted):
        return cause
    raise end


def _run() -> int:
    """Run the command line; the exit code, with the reason on stderr where it is not 0."""
    try:
        word = next(iter(sys.argv[1:]), None)
        only = word if word in (*COMMANDS, *CHECKOUT_COMMANDS) else None
        return application(only)(prog_name="vllm-variants", standalone_mode=False) or ExitCode.OK
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except (Error, OSError, RecursionError, UnicodeError, MemoryError, NOT_UNDERSTOOD) as failure:
        error = _as_error(failure)
        complain(error)
        return error.exit_code


def _as_error(failure: Exception) -> Error:
    """What ended a command, as an `Error`: a sentence of its own, or the system's in our words."""
    if isinstance(failure, Error):
        return failure
    if isinstance(failure, NOT_UNDERSTOOD):
        return _misread(failure)
    if isinstance(failure, OSError):
        return system_error(failure)
    if isinstance(failure, RecursionError):
        return InputError("something that was given is nested too deeply to be read")
    if isinstance(failure, UnicodeError):
        return InputError(f"text cannot be read or written as it was given: {failure}")
    return out_of_memory()


def _misread(failure: Any) -> UsageError:
    """What typer says of a command line that it does not understand, as an `Error`."""
    text, _, guess = failure.format_message().replace("Value error, ", "").partition(" Did you mean ")
    command = failure.ctx.command_path if failure.ctx else "vllm-variants"
    hint = f"did you mean {guess}" if guess else f"{command} --help"
    return UsageError(text[:1].lower() + text[1:].rstrip("."), hint=hint)
