"""Versions as numbers, to compare: of drivers, toolkits, releases, programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.version import Version


def numbers(version: str) -> tuple[int, ...]:
    """`580.82.07` as (580, 82, 7), to be compared; parts that are not a number are left out."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def order(release: str) -> Version:
    """A release's place among others: 0.9.0 < 0.14.0rc1 < 0.14.0 < 0.14.0+cu130 < 0.14.0.post1 < 0.14.1rc1.

    Raises `ValueError` for what is no version (PEP 440).
    """
    from packaging.version import Version  # here: scripts that need `numbers` alone have no such package

    return Version(release)
