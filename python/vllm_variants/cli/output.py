"""Where output goes: facts on stdout, talk and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on stdout.")]


def print_json(facts: Mapping[str, object] | Sequence[object]) -> None:
    """Write one JSON document, and nothing else, to stdout."""
    sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Tell the person something, on stderr."""
    err.print(text, markup=False)


def table(*columns: str) -> Table:
    """An empty table in the house style."""
    return Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))


def size(count: int) -> str:
    """Bytes for people, in decimal units: `6.21 GB`, `81.0 MB`, `12 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            digits = 2 if unit == "GB" else 1 if unit == "MB" else 0
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count} B"
