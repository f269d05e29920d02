"""Compute capabilities, the targets of device code, and which image runs on which device.

A *compute capability* is a pair such as 9.0; its SM is the digits, `sm90`. A *target* is what an
image was compiled for: a capability with an optional suffix, `9.0a` (architecture-specific) or
`10.0f` (family-specific). An image is a cubin (machine code) or PTX, which the driver compiles.

`fit` is the one place that says whether an image runs on a device. This module imports nothing of the
package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_CAPABILITY = re.compile(r"(?:sm_?|compute_?)?(?:(\d+)\.(\d)|(\d{2,3}))", re.IGNORECASE)
_SUFFIX = re.compile(r"(.*\d)([af]?)", re.IGNORECASE)


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
            raise ValueError(f"{text!r} is not a compute capability: write it as 9.0, 90 or sm90")
        major, minor, digits = match.groups()
        return cls(int(major), int(minor)) if major else cls(int(digits[:-1]), int(digits[-1]))

    @property
    def sm(self) -> str:
        """The SM's name: `sm90`."""
        return f"sm{self.major}{self.minor}"

    @property
    def tegra(self) -> bool:
        """Whether this is an embedded SoC, whose machine code no other device of its major runs."""
        return self in TEGRA

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


TEGRA = frozenset(Capability(*pair) for pair in ((5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)))
"""Tegra X1, X2, Xavier, Orin and Thor (10.1 until CUDA 12.9, renamed 11.0 in CUDA 13.0)."""


@dataclass(frozen=True, order=True)
class Target:
    """What an image was compiled for: a capability and `""`, `"a"` or `"f"`."""

    capability: Capability
    suffix: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `9.0a`, `90a`, `sm_90a`, `compute_100f`; raise `ValueError` on anything else."""
        match = _SUFFIX.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is not a target: write it as 9.0, 9.0a or sm_100f")
        return cls(Capability.parse(match[1]), match[2].lower())

    @property
    def sm(self) -> str:
        """As `cuobjdump` and `nvcc` write it: `sm_90a`."""
        return f"sm_{self.capability.major}{self.capability.minor}{self.suffix}"

    def __str__(self) -> str:
        return f"{self.capability}{self.suffix}"


class Kind(StrEnum):
    """The two kinds of image that a driver can run."""

    CUBIN = "cubin"
    PTX = "ptx"


class Fit(StrEnum):
    """How an image serves a device, from best to worst."""

    NATIVE = "native"  # a cubin of exactly this capability
    SAME_MAJOR = "same-major"  # a cubin of an earlier minor: 8.6 on 8.9
    FAMILY = "family"  # an `f` cubin of an earlier minor: 10.0f on 10.3
    JIT = "jit"  # PTX: the driver compiles it at first use
    NONE = "none"  # can never run there

    def __bool__(self) -> bool:
        """Whether the image runs at all."""
        return self is not Fit.NONE


def fit(kind: Kind, target: Target, device: Capability) -> Fit:
    """How an image of `kind` for `target` serves a device of capability `device`.

    - A cubin for X.z runs on X.y when z ≤ y; never on another major.
    - Between Tegra and anything else, machine code is not interchangeable, also within a major.
    - PTX for X.z is compiled by the driver for any device of the same or a later capability.
    - `a` code, cubin or PTX, runs on exactly its capability; `f` code within its family: the same
      major, from its own minor on.

    Source: CUDA C++ Programming Guide, "Binary compatibility", "PTX compatibility" and
    "Feature sets" (family- and architecture-specific targets). Not modelled: a driver too old for
    the PTX version, which the text of the PTX decides and no header.
    """
    capability = target.capability
    exact = capability == device
    same_major = capability.major == device.major and capability.minor <= device.minor
    interchangeable = exact or (same_major and not capability.tegra and not device.tegra)
    if target.suffix == "a" and not exact:
        return Fit.NONE
    if target.suffix == "f" and not interchangeable:
        return Fit.NONE
    if kind is Kind.PTX:
        return Fit.JIT if capability <= device else Fit.NONE
    if not interchangeable:
        return Fit.NONE
    if exact:
        return Fit.NATIVE
    return Fit.FAMILY if target.suffix == "f" else Fit.SAME_MAJOR


@dataclass(frozen=True)
class Choice:
    """What a driver takes from one container, and how it fits."""

    kind: Kind
    target: Target
    fit: Fit


def choose(images: Iterable[tuple[Kind, Target]], device: Capability) -> Choice | None:
    """What the driver of `device` takes from a container with these images; None: nothing runs.

    Any cubin that runs comes before all PTX; among each, the highest capability. What a driver
    does with `9.0` and `9.0a` side by side is not documented; the more specific is named here.
    """
    fitting = [Choice(kind, target, fit(kind, target, device)) for kind, target in images]
    return max(
        (choice for choice in fitting if choice.fit),
        key=lambda choice: (
            choice.kind is Kind.CUBIN,
            choice.target.capability,
            ("", "f", "a").index(choice.target.suffix),
        ),
        default=None,
    )
