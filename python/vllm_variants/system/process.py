"""Run programs: one that talks to the person (`run`), one that is asked (`ask`), and end any (`stop`).

On a terminal a program that talks gets a pseudo-terminal of its own, so that its progress bars work and
its words can still be read back when it fails. No program outlives this one (see `orphans`), and no wait
for one that is to end is without a limit.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import MissingError
from vllm_variants.system import orphans, progress

GRACE = 15.0  # seconds that a program has to end by itself once it was asked to
GONE = 1.5  # seconds for what it started to end, and again for what was killed
_POLL = 0.02  # seconds
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
            "uv is not installed beside this program", hint="install it, and name it in VLLM_VARIANTS_UV"
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
            env=orphans.environment(env),
            start_new_session=True,
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
        stop(process, talk=reading)
        raise
    finally:
        os.close(reading)
    return Talk(status, _plain(said))


_asked: set[subprocess.Popen[bytes]] = set()


def ask(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its status, stdout and stderr as text.

    Raises `OSError` when it cannot be started. It stays in this process's session, so that an ssh which
    it starts can still ask for a passphrase.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=orphans.environment(env),
    )
    _asked.add(process)
    try:
        out, err = process.communicate()
    except BaseException:
        end([process])
        raise
    finally:
        _asked.discard(process)
    texts = (text.decode(errors="replace") for text in (out, err))
    return subprocess.CompletedProcess(process.args, process.returncode, *texts)


def end_asked() -> None:
    """End every program that another thread waits for in `ask`, which returns then; within `2 × GONE`."""
    end(list(_asked))


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End these programs: SIGTERM, and SIGKILL `GONE` seconds later; returns within twice that."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.send_signal(number)  # does nothing to one that has ended
        deadline = time.monotonic() + GONE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(_POLL)


def stop(process: subprocess.Popen[bytes], *, talk: int | None = None, grace: float = GRACE) -> None:
    """End a program that has a session of its own, and what it started in there.

    The session's programs get one SIGINT, as a terminal's Ctrl-C gives it; what still comes from the
    descriptor `talk` is read and dropped, for one that waits for its reader never gets to its clean-up.
    After `grace` seconds, or a second interruption, comes SIGKILL. Returns at most `2 × GONE` seconds
    after that, even where the kernel does not let go of it.
    """
    if process.poll() is not None:
        return
    _signal(process.pid, signal.SIGINT)
    try:
        _ended(process, talk, grace)
        _rest_ended(process.pid)
    finally:
        _signal(process.pid, signal.SIGKILL)
        _ended(process, talk, GONE)


def _ended(process: subprocess.Popen[bytes], talk: int | None, seconds: float) -> None:
    """Wait until it has ended, for so long, and read meanwhile."""
    deadline = time.monotonic() + seconds
    waiting = select.poll()
    if talk is not None:
        waiting.register(talk, select.POLLIN)
    while process.poll() is None and time.monotonic() < deadline:
        if talk is not None and waiting.poll(_POLL * 1000):
            talk = talk if _read(talk) else None
        elif talk is None:
            time.sleep(_POLL)


def _read(talk: int) -> bytes:
    with suppress(OSError):  # a pseudo-terminal ends in EIO, not in an empty read
        return os.read(talk, 65536)
    return b""


def _rest_ended(group: int) -> None:
    """Wait until a group is empty, for a while: where nobody collects orphans, the dead stay in it."""
    deadline = time.monotonic() + GONE
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)  # raises once the group is empty
            time.sleep(_POLL)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _pass_on(reading: int, hidden: re.Pattern[str] | None) -> bytes:
    said, line = b"", b""
    while True:
        chunk = _read(reading)
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
    if progress.is_heard():  # by a program that uses this package: what is said to it is not a terminal's
        return
    sys.stderr.buffer.write(text)
    sys.stderr.buffer.flush()


def _plain(said: bytes) -> str:
    return _ANSI.sub("", said.decode(errors="replace")).replace("\r", "\n")
