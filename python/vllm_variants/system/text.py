"""Text for people: durations, and what programs print without their colours."""

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
