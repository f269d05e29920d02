"""End what a killed process leaves: nothing that this package starts outlives it.

Ctrl-C and SIGTERM are handled in order, but SIGKILL and the kernel's out-of-memory killer leave no time
for that. So every program gets a mark in its environment, which all that it starts inherits, and a
watcher reads a pipe of which only this process holds the other end. When that end closes without the
word that says an ordinary end, the watcher ends every process with the mark, and what shares a session
with one.

The watcher is this very file, run by path: it imports the standard library alone.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

MARK = "VLLM_VARIANTS_RUN"
"""The variable that marks a program; its value is another one in every process of ours."""
GRACE = 1.0
"""Seconds that an orphan has between SIGTERM and SIGKILL, and then to disappear."""
_ORDINARY_END = b"done"
_POLL = 0.02  # seconds


class _Watcher:
    """The watcher of this process; `mark` is the value that marks its programs."""

    def __init__(self) -> None:
        self.mark, self.owner = uuid.uuid4().hex, os.getpid()
        own_session = os.getsid(0)  # what shares it without a mark is not ours to end
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.mark, str(own_session)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Without the mark of a run that this one is part of: it must outlive what it watches.
            env={key: value for key, value in os.environ.items() if key != MARK},
            start_new_session=True,
        )
        atexit.register(self.release)

    def release(self) -> None:
        """Tell it that this process ends in order: what still runs was left running on purpose."""
        if self.owner == os.getpid() and self._process.stdin:
            with suppress(OSError):
                self._process.stdin.write(_ORDINARY_END)
                self._process.stdin.close()


_lock = threading.Lock()
_watcher: _Watcher | None = None


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (None: this process's environment) for a program that must not outlive this process."""
    global _watcher
    with _lock:
        if _watcher is None or _watcher.owner != os.getpid():
            _watcher = _Watcher()
        return {**(os.environ if base is None else base), MARK: _watcher.mark}


def end(mark: str, spared_session: int) -> None:
    """End every process with the mark, and all in the session of one, `spared_session` excepted.

    Returns when they are gone, or `2 × GRACE` seconds later where something does not die.
    """
    sessions: set[int] = set()
    signalled: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        while orphans := list(_orphans(mark, sessions, spared_session)):
            for pid in orphans:
                if number == signal.SIGKILL or pid not in signalled:
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            signalled.update(orphans)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)


def _orphans(mark: str, sessions: set[int], spared_session: int) -> Iterator[int]:
    """The processes to end; `sessions` grows by those in which one with the mark was seen."""
    variable = f"{MARK}={mark}".encode()
    unmarked: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # proc(5), /proc/PID/stat: the fields behind the program's name in parentheses
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            state, session = fields[0], int(fields[3])
            if state in "ZX":
                continue
            if _has(folder, variable):
                if session != spared_session:
                    sessions.add(session)
                yield int(folder.name)
            else:
                unmarked[int(folder.name)] = session
    yield from (pid for pid, session in unmarked.items() if session in sessions)


def _has(folder: Path, variable: bytes) -> bool:
    try:
        return variable in (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return False


def main(mark: str, spared_session: int) -> None:
    """Watch standard input until it ends."""
    if _ORDINARY_END not in sys.stdin.buffer.read():
        end(mark, spared_session)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
