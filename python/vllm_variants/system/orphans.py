"""End what a killed process leaves: nothing that this package starts outlives it.

Ctrl-C and SIGTERM are answered in order, but SIGKILL and the kernel's memory killer leave no time for
that. So every program gets a mark in its environment, which all that it starts inherits, and a
watcher reads a pipe of which only this process holds the other end. When that end closes without a
word of farewell, the watcher ends every process with the mark, and what shares a session with one.

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
GRACE = 1.0  # seconds that an orphan has between SIGTERM and SIGKILL, and then to disappear
_FAREWELL = b"done"
_POLL = 0.02  # seconds


class _Watcher:
    """The watcher of one process; `mark` is the value that its programs bear."""

    def __init__(self) -> None:
        self.mark, self.of = uuid.uuid4().hex, os.getpid()
        spared = os.getsid(0)  # what shares our own session without a mark is not ours to end
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.mark, str(spared)],
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
        """Say farewell: what still runs was left running on purpose."""
        if self.of == os.getpid() and self._process.stdin:
            with suppress(OSError):
                self._process.stdin.write(_FAREWELL)
                self._process.stdin.close()


_lock = threading.Lock()
_watcher: _Watcher | None = None


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (else this process's environment) for a program that must not outlive this process."""
    global _watcher
    with _lock:
        if _watcher is None or _watcher.of != os.getpid():
            _watcher = _Watcher()
        return {**(os.environ if base is None else base), MARK: _watcher.mark}


def end(mark: str, spared: int) -> None:
    """End every process that bears `mark`, or is in the session of one, `spared` being left alone.

    Returns when they are gone, or `2 × GRACE` seconds later where something does not die.
    """
    sessions: set[int] = set()
    told: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        while found := list(_running(mark, sessions, spared)):
            for pid in found:
                if number == signal.SIGKILL or pid not in told:
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            told.update(found)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)


def _running(mark: str, sessions: set[int], spared: int) -> Iterator[int]:
    """The processes to end; `sessions` grows by those in which one with the mark was seen."""
    wanted = f"{MARK}={mark}".encode()
    rest: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            state, session = words[0], int(words[3])
            if state in "ZX":
                continue
            if _bears(folder, wanted):
                if session != spared:
                    sessions.add(session)
                yield int(folder.name)
            else:
                rest[int(folder.name)] = session
    yield from (pid for pid, session in rest.items() if session in sessions)


def _bears(folder: Path, wanted: bytes) -> bool:
    try:
        return wanted in (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's
        return False


def main(mark: str, spared: int) -> None:
    """Watch standard input until it ends."""
    if _FAREWELL not in sys.stdin.buffer.read():
        end(mark, spared)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
