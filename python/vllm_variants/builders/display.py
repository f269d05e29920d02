"""Show a batch while it builds: a table on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vllm_variants.system.text import duration

EVERY = 30.0
"""Seconds between two lines on the same variant in a log."""


@dataclass(frozen=True)
class Row:
    """One variant as it stands.

    `state` is a word (`waiting`, `downloading`, `building`, `auditing`, …), `objects` how many objects of
    how many are compiled, `amount` how much of a download is there.
    """

    short: str
    state: str
    phase: str = ""
    objects: tuple[int, int] | None = None
    machine: str = ""
    seconds: float = 0.0
    amount: str = ""

    def text(self) -> str:
        """The row as a line of a log."""
        parts = [self.phase or self.state]
        if self.amount:
            parts.append(self.amount)
        if self.objects:
            parts.append(f"{self.objects[0]}/{self.objects[1]} objects")
        if self.machine:
            parts.append(f"on {self.machine}")
        return f"{self.short}: {' '.join(parts)}, {duration(self.seconds)}"


@dataclass(frozen=True)
class View:
    """All variants, and a line on what goes on beside them: downloads, builds that they need."""

    rows: Sequence[Row]
    beside: str = ""


class Display(Protocol):
    """Shows a batch while it builds, and lines of text between."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Show a line that stays."""
        ...

    def tick(self) -> None:
        """Show what is new; to be called often."""
        ...


class Lines:
    """A line on a variant when it starts, changes phase, or had none for `EVERY` seconds."""

    def __init__(
        self,
        view: Callable[[], View],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self.say, self._clock = view, say, clock
        self._shown: dict[str, tuple[str, str, float]] = {}
        self._beside = clock()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tick(self) -> None:
        """Print what changed."""
        view, now = self._view(), self._clock()
        for row in view.rows:
            state, phase, shown = self._shown.get(row.short, ("", "", 0.0))
            busy = row.state in ("building", "downloading")
            if busy and (row.state != state or row.phase != phase or now - shown >= EVERY):
                self.say(row.text())
                self._shown[row.short] = (row.state, row.phase, now)
        if view.beside and now - self._beside >= EVERY:
            self.say(view.beside)
            self._beside = now


class Board:
    """A table at the bottom of the terminal, redrawn four times a second; lines of text scroll above it."""

    def __init__(self, view: Callable[[], View], console: Console) -> None:
        self._view = view
        self._console = console
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> Board:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, text: str) -> None:
        """Print above the table."""
        self._console.print(text, markup=False)

    def tick(self) -> None:
        """Nothing: the table draws itself."""

    def _draw(self) -> RenderableType:
        view = self._view()
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for row in view.rows:
            amount = f"{row.objects[0]}/{row.objects[1]}" if row.objects else row.amount
            machine = f"on {row.machine}" if row.machine else ""
            elapsed = duration(row.seconds) if row.seconds else ""
            grid.add_row(row.short, row.state, row.phase, amount, elapsed, machine)
        return Group(grid, Text(view.beside, style="dim", overflow="ellipsis", no_wrap=True))
