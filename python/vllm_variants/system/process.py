"""Run programs: the only place where this package starts one, reads what it prints, and ends it.

    capture    to its end, with what it printed as text; `capture_all` several at once
    stream     line by line, for a program that reports its progress
    show       passing its output on to the person, who sees its progress bars
    start      for a caller that talks with it, and ends it by `stop` or `kill`

No program outlives this one (see `orphans`), and no wait for one that is to end is without a limit.
Needs the standard library alone: `python -m vllm_variants.verify` runs where nothing is installed.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import selectors
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vllm_variants.system import interruption, orphans, progress
from vllm_variants.system.text import plain

GRACE = 15.0
"""Seconds that a program has to end by itself once it was asked to."""
GONE = 1.5
"""Seconds for what a program started to end, and again for what was killed."""
TICK = 0.25
"""Seconds between two ticks while a program is silent."""
_POLL = 0.02  # seconds
_CHUNK = 65536  # bytes
_TAIL = 65536  # bytes of shown output that are kept for the reason of a failure

Command = Sequence[str | Path]
_Popen = subprocess.Popen[bytes]


@dataclass(frozen=True)
class CompletedCommand:
    """A program that has ended: its exit status, and what it wrote, as text.

    A program that a signal ended has the signal's number as its status, negative. Bytes that are not
    UTF-8 became U+FFFD.
    """

    status: int
    stdout: str = ""
    stderr: str = ""

    @property
    def output(self) -> str:
        """What it wrote to stdout, then what it wrote to stderr."""
        return self.stdout + self.stderr


def start(
    command: Command, *, env: Mapping[str, str] | None = None, own_session: bool = True, **options: Any
) -> _Popen:
    """Start a program that ends when this process does, however that happens.

    `env` is its whole environment; None: this process's. In a session of its own it does not hear the
    terminal's Ctrl-C, and `stop` and `kill` reach what it starts as well. `options` go to `Popen`; stdin
    is empty unless they say otherwise. Raises `OSError` when it cannot be started. An interruption
    while it is started comes when it is: who must `stop` it holds that back (see `interruption`).
    """
    with interruption.held():
        return subprocess.Popen(
            [str(word) for word in command],
            env=orphans.environment(env),
            start_new_session=own_session,
            **{"stdin": subprocess.DEVNULL, **options},
        )


class _Captured:
    """A program whose output goes to memory: no pipe fills, and nothing that it leaves holds us up."""

    running: ClassVar[set[_Popen]] = set()

    def __init__(
        self,
        command: Command,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        text: str = "",
    ) -> None:
        self._files = [os.fdopen(os.memfd_create("captured"), "w+b", buffering=0) for _ in range(3)]
        stdin, stdout, stderr = self._files
        stdin.write(text.encode())
        stdin.seek(0)
        pipes = {"stdin": stdin if text else subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
        try:
            self.process = start(command, env=env, own_session=False, cwd=folder, **pipes)
        except BaseException:
            self._close()
            raise
        self.running.add(self.process)

    def close(self) -> CompletedCommand:
        """How it ended; ends it where it did not."""
        if self.process.poll() is None:
            end([self.process])
        status = -signal.SIGKILL if self.process.returncode is None else self.process.returncode
        self.running.discard(self.process)
        sizes = [(file.fileno(), os.fstat(file.fileno()).st_size) for file in self._files[1:]]
        texts = [os.pread(descriptor, size, 0).decode(errors="replace") for descriptor, size in sizes]
        self._close()
        return CompletedCommand(status, *texts)

    def _close(self) -> None:
        for file in self._files:
            file.close()


def capture(
    command: Command,
    *,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    text: str = "",
    seconds: float | None = None,
) -> CompletedCommand:
    """Run a program in `folder` to its end; `text` is what it reads from stdin.

    It stays in this process's session, so that an ssh which it starts can still ask for a passphrase.
    Raises `OSError` when it cannot be started; `TimeoutError`, which is one, after `seconds`.
    """
    with interruption.held() as held:
        program = _Captured(command, env, folder, text)
        try:
            held.release()
            program.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{command[0]} did not end within {seconds} seconds") from error
        finally:
            completed = program.close()
    return completed


def capture_all(commands: Sequence[Command], at_once: int) -> list[CompletedCommand]:
    """Run every command, at most `at_once` at the same time; how each ended, in their order.

    None is left running when an interruption or an `OSError` ends this early.
    """
    waiting = list(enumerate(commands))
    running: dict[int, _Captured] = {}
    completed: dict[int, CompletedCommand] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, command = waiting.pop(0)
                with interruption.held():
                    running[index] = _Captured(command)
            for index in [index for index, program in running.items() if program.process.poll() is not None]:
                completed[index] = running.pop(index).close()
            time.sleep(_POLL)
    finally:
        end([program.process for program in running.values()])
        for program in running.values():
            program.close()
    return [completed[index] for index in range(len(commands))]


def end_captured() -> None:
    """End every program that another thread captures, which then goes on; takes at most `2 × GONE`."""
    end(list(_Captured.running))


def stream(
    command: Command,
    on_line: Callable[[str], None],
    tick: Callable[[], None],
    *,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stdout: bool = False,
) -> int:
    """Run a program in `folder`, call `on_line` for each line of its stderr and `tick` often; its status.

    With `stdout` its lines there come as well; else they are dropped. Whatever ends this early (Ctrl-C, a
    defect) stops the program first: it has a session of its own, so that it hears one signal and no second.
    """
    reading, writing = os.pipe()
    rest = b""

    def split(chunk: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            on_line(line.decode(errors="replace"))

    with os.fdopen(reading, "rb", buffering=0):
        status = _to_its_end(
            lambda process: _follow(process, reading, split, tick),
            command, reading, writing, env=env, cwd=folder,
            stdout=writing if stdout else subprocess.DEVNULL, stderr=writing,
        )  # fmt: skip
    if rest:
        on_line(rest.decode(errors="replace"))
    return status


def show(command: Command, env: Mapping[str, str] | None = None, hide: str | None = None) -> CompletedCommand:
    """Run a program and pass its output on to stderr as it comes; the last 64 KiB of it are `stdout`.

    On a terminal it gets a pseudo-terminal of its own, so that its progress bars work. Lines that match
    the regular expression `hide`, without colours, are kept but not shown.
    """
    terminal = sys.stderr.isatty()
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        with suppress(OSError):  # the size of the window, so that bars fit
            fcntl.ioctl(writing, termios.TIOCSWINSZ, fcntl.ioctl(2, termios.TIOCGWINSZ, b"\0" * 8))
    shown = _Shown(re.compile(hide) if hide else None)
    with os.fdopen(reading, "rb", buffering=0):
        status = _to_its_end(
            lambda process: _follow(process, reading, shown.take),
            command, reading, writing, env=env, stdout=writing, stderr=writing,
        )  # fmt: skip
    shown.take_rest()
    return CompletedCommand(status, plain(shown.tail.decode(errors="replace")).replace("\r", "\n"))


def _to_its_end(
    follow: Callable[[_Popen], int], command: Command, reading: int, writing: int, **options: Any
) -> int:
    """Start a program and let `follow` give its status; one that still runs when that ends is stopped.

    It writes to the descriptor `writing`, which is closed here; `reading` is the other end.
    """
    with interruption.held() as held:
        try:
            process = start(command, **options)
        finally:
            os.close(writing)
        try:
            held.release()
            return follow(process)
        finally:
            stop(process, output=reading)


class _Shown:
    """Output on its way to stderr, without the lines that are hidden; `tail` is the end of all of it."""

    def __init__(self, hidden: re.Pattern[str] | None) -> None:
        self.tail, self._hidden, self._line = b"", hidden, b""

    def take(self, chunk: bytes) -> None:
        self.tail = (self.tail + chunk)[-_TAIL:]
        *lines, self._line = (self._line + chunk).split(b"\n")
        self._write(b"".join(line + b"\n" for line in lines if not self._is_hidden(line)))
        if not (self._hidden and self._line.startswith(b" ")):  # else it may yet become a hidden line
            self.take_rest()

    def take_rest(self) -> None:
        self._write(self._line)
        self._line = b""

    def _is_hidden(self, line: bytes) -> bool:
        return bool(self._hidden and self._hidden.match(plain(line.decode(errors="replace"))))

    def _write(self, text: bytes) -> None:
        if progress.is_heard():  # by a program that uses this package: its stderr is not ours to write to
            return
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


def _follow(
    process: _Popen, reading: int, take: Callable[[bytes], None], tick: Callable[[], None] = lambda: None
) -> int:
    """Give what comes from the descriptor `reading` to `take` until the program has ended; its exit status.

    The program's end counts, not that of its output, which something that it leaves may hold open (the
    connection that ssh keeps for the next call).
    """
    open_, drained = True, float("inf")
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            tick()
            status = process.poll()
            ready = open_ and bool(selector.select(TICK if status is None else 0))
            if ready:
                chunk = _read(reading)
                open_ = bool(chunk)
                take(chunk)
            elif status is not None:
                return status
            elif not open_:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(TICK)
            if status is not None:
                drained = min(drained, time.monotonic() + GONE)
                if time.monotonic() > drained:
                    return status


# ── ending ──


def end(processes: Sequence[_Popen]) -> None:
    """End these programs: SIGTERM, and SIGKILL `GONE` seconds later; returns within twice that."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.send_signal(number)  # does nothing to one that has ended
        deadline = time.monotonic() + GONE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(_POLL)


def stop(process: _Popen, *, output: int | None = None, grace: float = GRACE) -> None:
    """End a program that has a session of its own, and what it started in there.

    The session's programs get one SIGINT, as a terminal's Ctrl-C gives it; what still comes from the
    descriptor `output` is read and dropped, for a program that waits for its reader never gets to its
    clean-up. After `grace` seconds, or a second interruption, comes SIGKILL. Returns at most `2 × GONE`
    seconds after that, even where the kernel does not let go of it.
    """
    if process.poll() is not None:
        return
    _signal(process, signal.SIGINT)
    try:
        _wait(process, output, grace)
        _wait_for_session(process)
    finally:
        _signal(process, signal.SIGKILL)
        _wait(process, output, GONE)


def kill(process: _Popen, seconds: float = GONE) -> bool:
    """End a program that has a session of its own at once, with all in there; whether it is gone.

    It is not where SIGKILL does not end it: a driver that hangs keeps the processes that wait in it.
    Returns within `2 × seconds`: what it started is waited for too, since it holds a GPU's memory.
    """
    _signal(process, signal.SIGKILL)
    _wait(process, None, seconds)
    _wait_for_session(process, seconds)
    return process.poll() is not None


def _wait(process: _Popen, output: int | None, seconds: float) -> None:
    """Wait until it has ended, for so long, and read meanwhile."""
    deadline = time.monotonic() + seconds
    waiting = select.poll()
    if output is not None:
        waiting.register(output, select.POLLIN)
    while process.poll() is None and time.monotonic() < deadline:
        if output is not None and waiting.poll(_POLL * 1000):
            output = output if _read(output) else None
        elif output is None:
            time.sleep(_POLL)


def _wait_for_session(process: _Popen, seconds: float = GONE) -> None:
    """Wait until its session is empty, for a while: where nobody collects orphans, the dead stay in it."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)  # raises once the group is empty
            time.sleep(_POLL)


def _signal(process: _Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _read(descriptor: int) -> bytes:
    with suppress(OSError):  # a pseudo-terminal ends in EIO, not in an empty read
        return os.read(descriptor, _CHUNK)
    return b""
