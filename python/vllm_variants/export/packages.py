"""The packages of a result: what each is called, what its metadata says, and which files it has."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PathDistribution
from pathlib import Path

from vllm_variants.errors import Error
from vllm_variants.export.sources import site_packages
from vllm_variants.model.results import DamagedError, Result


@dataclass(frozen=True)
class Row:
    """A row of a RECORD: a path relative to site-packages, its hash (`sha256=…`) and its size, as written."""

    path: str
    hash: str
    size: str


@dataclass(frozen=True)
class Package:
    """An installed package: `info` is its dist-info folder, in the site-packages folder `site`."""

    site: Path
    info: Path

    @cached_property
    def distribution(self) -> PathDistribution:
        """The package as Python's own library sees it."""
        return PathDistribution(self.info)

    @cached_property
    def spelled(self) -> str:
        """The name as the package's metadata spells it: `Jinja2`."""
        return self._fact("Name")

    @cached_property
    def name(self) -> str:
        """The normalized name (PyPA's "Names and normalization"): `jinja2`, `nvidia-nccl-cu12`."""
        return normalized(self.spelled)

    @cached_property
    def version(self) -> str:
        """The version as the metadata has it: `2.9.1`, `2.9.1+cu129`."""
        return self._fact("Version")

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows of its RECORD; raises `DamagedError` where it cannot be read."""
        try:
            with (self.info / "RECORD").open(encoding="utf-8", newline="") as file:
                rows = tuple(Row(*row[:3]) for row in csv.reader(file, strict=True) if row)
        except (OSError, UnicodeDecodeError, csv.Error, TypeError) as error:
            raise _damaged(self.info / "RECORD") from error
        if not rows:
            raise _damaged(self.info / "RECORD")
        return rows

    @cached_property
    def programs(self) -> frozenset[str]:
        """The programs that an installer makes of its entry points: no files of a wheel."""
        return frozenset(
            point.name
            for point in self.distribution.entry_points
            if point.group in ("console_scripts", "gui_scripts")
        )

    def text(self, name: str) -> str:
        """A file of dist-info; raises `DamagedError` where it cannot be read."""
        try:
            return (self.info / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(self.info / name) from error

    def _fact(self, field: str) -> str:
        value = self.distribution.metadata[field]
        if not value:
            raise _damaged(self.info / "METADATA")
        return str(value)


def of_result(result: Result) -> tuple[Package, ...]:
    """The packages of a result, by name; raises `DamagedError` where some of them are not there."""
    site = site_packages(result)
    found = sorted(_packages(site), key=lambda package: package.name)
    expected = result.manifest.facts.get("packages") or {}
    missing = sorted(set(expected) - {package.name for package in found})
    if missing or not found:
        what = ", ".join(missing) or "all packages"
        raise DamagedError(f"{result.path} has lost {what}", hint="build the variant again")
    return tuple(found)


def recorded(packages: Sequence[Package], root: Path) -> dict[str, set[str]]:
    """The hashes that RECORDs have of files, by their paths relative to `root`: `sha256=…`, as written."""
    found: dict[str, set[str]] = {}
    for package in packages:
        site = os.path.relpath(package.site, root)
        for row in package.rows:
            if row.hash.startswith("sha256="):
                path = os.path.normpath(f"{site}/{row.path}")
                found.setdefault(path, set()).add(row.hash)
    return found


def normalized(name: str) -> str:
    """A project's name as it is compared: lower case, one dash for each run of `-`, `_` and `.`."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Owners:
    """Which of some packages a path belongs to."""

    def __init__(self, packages: Sequence[Package]) -> None:
        self._index: dict[str, set[str]] = {}
        for package in packages:
            for row in package.rows:
                path = os.path.normpath(row.path)
                while path:
                    self._index.setdefault(path, set()).add(package.name)
                    path = os.path.dirname(path)  # noqa: PTH120 - a name in a RECORD, no path here

    def of(self, path: str) -> frozenset[str]:
        """The names of the packages that have a file, its path relative to site-packages.

        Those that have it in their RECORD; for a file that is in none (it was dropped), those that have the
        nearest folder above it.
        """
        path = os.path.normpath(path)
        while path and path not in self._index:
            path = os.path.dirname(path)  # noqa: PTH120 - a name in a RECORD, no path here
        return frozenset(self._index.get(path, ()))


def _packages(site: Path) -> Iterator[Package]:
    for info in sorted(site.glob("*.dist-info")):
        if (info / "METADATA").is_file():
            yield Package(site, info)


def _damaged(path: Path) -> Error:
    return DamagedError(f"{path} is damaged: it cannot be read", hint="build the variant again")
