"""Where output goes: facts on stdout, talk and progress on stderr.

Facts that cannot be written end the program in a documented exit code. Talk that nobody can read
is dropped: a closed or full stderr stops no work.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.table import Table

from vllm_variants.errors import Error, InputError, OutputClosed, ResourceError, readable
from vllm_variants.system.text import size as size

_NARROWEST = 80
"""Columns that a table is given at least: a narrower terminal wraps its lines, and loses no word."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
    if console.width < _NARROWEST:
        console.width = _NARROWEST
    return console


_SURROGATE = re.compile("[\ud800-\udfff]")

out = _console(stderr=False)
err = _console(stderr=True)


def print_json(document: Mapping[str, object]) -> None:
    """Write one JSON document, named in its `schema` (see `documents`), and nothing else to stdout.

    A byte of a path that is no text becomes an escaped surrogate (PEP 383): `os.fsencode` gives it back.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False)
    sys.stdout.write(_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


class _Facts(io.TextIOWrapper):
    """stdout: what refuses to be written to is an `Error`, once."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            _discard(self)
            raise _unwritable(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            _discard(self)
            raise _unwritable(error) from error


class _Talk(io.TextIOWrapper):
    """stderr: what cannot be written is dropped."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _discard(self)


def _unwritable(error: OSError) -> Error:
    if isinstance(error, BrokenPipeError):
        return OutputClosed("whoever read stdout closed it")
    if error.errno == errno.EBADF:
        return InputError("stdout is closed: there is nowhere to print to", hint="send it to a file: > FILE")
    return ResourceError(f"stdout cannot be written to: {error.strerror}")


def open_streams() -> None:
    """Make stdout and stderr streams that fail as said above, also where a program was started without.

    A file opened later never gets the number of a standard stream that was closed.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is this one; 1 is for reading, so that writing fails
            os.set_inheritable(os.open(os.devnull, flags), True)
    sys.stdout = _opened(_Facts, 1, sys.stdout)
    sys.stderr = _opened(_Talk, 2, sys.stderr)


def _opened(kind: type[io.TextIOWrapper], number: int, former: TextIO | None) -> io.TextIOWrapper:
    """A stream that writes letters as Python's own did; that was told by locale and PYTHONIOENCODING.

    But a path that is no text is written byte for byte, as Python does in the C locale alone.
    """
    file = os.fdopen(number, "wb", closefd=False)
    if former is None:
        return kind(file, "utf-8", "backslashreplace")
    former.flush()
    errors = "surrogateescape" if former.errors == "strict" else former.errors
    return kind(file, former.encoding, errors, line_buffering=bool(former.line_buffering))


def close_streams(code: int) -> int:
    """Write out what is left; the exit code, which is that of a failure to do so where it was 0."""
    try:
        sys.stdout.flush()
    except Error as error:
        complain(error)
        code = code or error.exit_code
    sys.stderr.flush()
    return code


def _discard(stream: TextIO) -> None:
    """Let a stream go nowhere, with what it still holds; the interpreter would fail with it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def complain(error: Error) -> None:
    """Print an error as one sentence, and the command that helps."""
    if isinstance(error, OutputClosed):
        return
    err.print("[red]error:[/red] ", end="", markup=True)
    err.print(readable(error.message))
    if error.hint:
        err.print(f"hint: {readable(error.hint)}")


def say(text: str) -> None:
    """Tell the person something, on stderr."""
    err.print(text)


def table(*columns: str) -> Table:
    """An empty table in the house style."""
    return Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
