"""Versions as numbers, to compare: of drivers, toolkits, releases, programs."""

from __future__ import annotations


def numbers(version: str) -> tuple[int, ...]:
    """`580.82.07` as (580, 82, 7), to be compared; parts that are not a number are left out."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
