"""Text for people: durations, sizes, and what programs print without their colours."""

from __future__ import annotations

import re

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""A control sequence of a terminal: ECMA-48, 5.4."""


def plain(text: str) -> str:
    """`text` without the control sequences that colour it or move a terminal's cursor."""
    return _ANSI.sub("", text)


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 20 s`, `5 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes for people, in decimal units: `6.21 GB`, `81.0 MB`, `12 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            digits = 2 if unit == "GB" else 1 if unit == "MB" else 0
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count} B"
