"""Which Python package a file belongs to: as the packages' RECORDs say, else by its folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

_SITE_PACKAGES = re.compile(r"(?:.*/)?site-packages/")
_NAMESPACES = frozenset({"nvidia"})
"""Folders that several packages share, each in a folder of its own below."""
NO_PACKAGE = "launchers and reports"
"""What lies in a result beside its packages."""


@dataclass(frozen=True)
class Owners:
    """The packages of a site-packages folder: `of_file` by path below it, `of_folder` where one owns all."""

    of_file: dict[str, str]
    of_folder: dict[str, str]

    def owner(self, path: str) -> str:
        """The package of a path, which counts from site-packages or from any folder above it."""
        below = _SITE_PACKAGES.sub("", path)
        if found := self.of_file.get(below):
            return found
        for folder in PurePosixPath(below).parents:
            if found := self.of_folder.get(str(folder)):
                return found
        return _by_folder(path)


NOBODY = Owners({}, {})
"""Where no RECORD is at hand: every path goes by its folder."""


def owners(site_packages: Path) -> Owners:
    """The owners of files below a site-packages folder, from the RECORD of every package in it.

    A RECORD that cannot be read owns nothing: its files go by their folder.
    """
    of_file: dict[str, str] = {}
    for record in sorted(site_packages.glob("*.dist-info/RECORD")):
        name = _distribution(record.parent.name)
        for path in _recorded(record):
            of_file.setdefault(path, name)
    of_folder: dict[str, set[str]] = {}
    for path, name in of_file.items():
        for folder in PurePosixPath(path).parents[:-1]:
            of_folder.setdefault(str(folder), set()).add(name)
    return Owners(of_file, {folder: min(names) for folder, names in of_folder.items() if len(names) == 1})


def _recorded(record: Path) -> Iterable[str]:
    try:
        with record.open(encoding="utf-8", newline="") as file:
            return [row[0] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


@cache
def _distribution(folder: str) -> str:
    """`nvidia-cublas-cu12` of `nvidia_cublas_cu12-12.9.1.4.dist-info`."""
    return normalised(folder.removesuffix(".dist-info").rpartition("-")[0])


def normalised(name: str) -> str:
    """A package's name as indexes write it (PyPA, "Names and normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _by_folder(path: str) -> str:
    """`torch` of `…/site-packages/torch/lib/x.so`, `nvidia/cublas` of a shared folder."""
    inside = bool(_SITE_PACKAGES.match(path))
    parts = PurePosixPath(_SITE_PACKAGES.sub("", path)).parts
    if len(parts) > 1 and parts[0] in {"bin", "share", "lib"} and not inside:
        return NO_PACKAGE
    if len(parts) > 2 and parts[0] in _NAMESPACES:
        return "/".join(parts[:2])
    return parts[0].removesuffix(".libs") if len(parts) > 1 else NO_PACKAGE if not inside else "single files"
