"""Progress of long work, on stderr: a bar on a terminal, elsewhere a line a quarter."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Say = Callable[[str], None]
"""Shows the person a line, on stderr."""

Advance = Callable[[int, int], None]
"""Called with how much is done, and of how much, in bytes."""


def draws() -> bool:
    """Whether stderr is a terminal that can draw over its own lines; those of editors often cannot."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


_listener: ContextVar[Say | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(say: Say) -> Iterator[None]:
    """In this block progress goes to `say`, a line at a time, and nothing goes to stderr by itself."""
    token = _listener.set(say)
    try:
        yield
    finally:
        _listener.reset(token)


def is_heard() -> bool:
    """Whether somebody listens instead of stderr: see `heard_by`."""
    return _listener.get() is not None


@contextmanager
def bar(title: str) -> Iterator[Advance]:
    """Show progress under `title` while the block runs, by calls of the `Advance` that it gives."""
    listener = _listener.get()
    if listener or not draws():
        yield _Lines(title, listener or _to_stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


class _Lines:
    """A line each time another quarter is done."""

    def __init__(self, title: str, say: Say) -> None:
        self._title, self._say, self._quarter = title, say, 0

    def __call__(self, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 4
        if quarter > self._quarter:
            self._quarter = quarter
            self._say(f"{self._title}: {25 * quarter} % of {total / 1e9:.2f} GB")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
