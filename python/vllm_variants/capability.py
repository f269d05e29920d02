"""Compute capabilities, the targets of device code, and which image runs on which device.

A *compute capability* is a pair such as 9.0; its SM is the digits, `sm90`. A *target* is what an
image was compiled for: a capability with an optional suffix, `9.0a` (architecture-specific) or
`10.0f` (family-specific). This module knows nobody else in the package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_CAPABILITY = re.compile(r"(?:sm_?|compute_?)?(?:(\d+)\.(\d)|(\d{2,3}))", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Capability:
    """A compute capability, as the driver reports it: `Capability(9, 0)`."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `9.0`, `90`, `sm90`, `sm_90` or `compute_90`; raise `ValueError` on anything else."""
        match = _CAPABILITY.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is no compute capability: write it as 9.0, 90 or sm90")
        major, minor, digits = match.groups()
        return cls(int(major), int(minor)) if major else cls(int(digits[:-1]), int(digits[-1]))

    @property
    def sm(self) -> str:
        """The SM's name: `sm90`."""
        return f"sm{self.major}{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"
