"""Run a program that talks to the person on stderr, and keep what it said.

On a terminal the program gets a pseudo-terminal of its own, so that its progress bars work and its
words can still be read back when it fails.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import MissingError

_KEPT = 65536  # bytes of talk that are kept for the reason of a failure
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Talk:
    """How a program ended: its exit status and the last 64 KiB that it wrote, without colours."""

    status: int
    text: str


def uv() -> str:
    """The uv program: the one that `VLLM_VARIANTS_UV` names, else the one installed with this package."""
    named = os.environ.get("VLLM_VARIANTS_UV")
    if named:
        return named
    from uv import find_uv_bin

    try:
        return find_uv_bin()
    except FileNotFoundError as error:
        raise MissingError(
            "uv is not installed beside this program", mend="install it, and name it in VLLM_VARIANTS_UV"
        ) from error


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None, hide: str | None = None) -> Talk:
    """Run `command`, passing its output on to stderr as it comes; always reaps the process.

    Lines that match the regular expression `hide` (without colours) are kept but not shown.
    """
    hidden = re.compile(hide) if hide else None
    terminal = sys.stderr.isatty()
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        with suppress(OSError):  # the size of the window, so that bars fit
            fcntl.ioctl(writing, termios.TIOCSWINSZ, fcntl.ioctl(2, termios.TIOCGWINSZ, b"\0" * 8))
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env=dict(env) if env is not None else None,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        said = _pass_on(reading, hidden)
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(reading)
    return Talk(status, _plain(said))


def _pass_on(reading: int, hidden: re.Pattern[str] | None) -> bytes:
    said, line = b"", b""
    while True:
        try:
            chunk = os.read(reading, 65536)
        except OSError:  # a pseudo-terminal ends in EIO, not in an empty read
            chunk = b""
        if not chunk:
            _show(line)
            return said
        said = (said + chunk)[-_KEPT:]
        *lines, line = (line + chunk).split(b"\n")
        show = b"".join(text + b"\n" for text in lines if not (hidden and hidden.match(_plain(text))))
        if not (hidden and line.startswith(b" ")):  # what may yet become a hidden line waits for its end
            show, line = show + line, b""
        _show(show)


def _show(text: bytes) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def _plain(said: bytes) -> str:
    return _ANSI.sub("", said.decode(errors="replace")).replace("\r", "\n")
