"""What an export holds besides Python packages: CPython, libraries of a host, the base of an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Other:
    """Something in an export that is no Python package: its purl says what (`pkg:deb/debian/libc6@2.41-12`).

    `licences` are SPDX expressions or names, all of which hold; empty where they are not known. `notes` say
    what it is or has in the export; `texts` are the files with its licences, for the export to take along.
    """

    name: str
    version: str
    purl: str
    licences: tuple[str, ...] = ()
    notes: str = ""
    texts: tuple[Path, ...] = ()
