"""Where the bytes are: by package and file, as installed and as they are now, and which rule freed what."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_variants.reports.packages import NOBODY, Owners, normalised, owners
from vllm_variants.reports.serving import Serves, serves

_OWN_PART = 1_000_000
"""Bytes from which a file is shown by itself; the others of a package are one part."""
BYTECODE = "bytecode"


@dataclass(frozen=True)
class Part:
    """One file of a package, or all its small ones together (`path` is empty then, `files` their number).

    Sizes in bytes. `before` is None where nobody knows how large it was; `saved` is by rule, less than zero
    for what was added; `foreign` is code in it that can never run on the device.
    """

    path: str
    files: int
    before: int | None
    after: int
    serves: str
    saved: Mapping[str, int]
    foreign: int


@dataclass(frozen=True)
class Package:
    """A Python package and its files, the largest first; `version` is empty where it is not known."""

    name: str
    version: str
    before: int | None
    after: int
    parts: tuple[Part, ...]

    def as_dict(self) -> dict[str, Any]:
        """The package as JSON."""
        return {**asdict(self), "parts": [asdict(part) for part in self.parts]}


@dataclass(frozen=True)
class Saving:
    """What a rule of the build freed, in bytes (below zero: it added), and the option that leaves it out."""

    rule: str
    bytes: int
    undo: str


def of_result(
    root: Path, manifest: Mapping[str, Any], slim: Mapping[str, Any] | None, audit: Mapping[str, Any] | None
) -> list[Package]:
    """The packages of a result that was built from wheels, the largest first.

    Every file is measured where it lies, once for all its names. Those that slimming changed have their
    former size in `slim`, those that the build left out theirs in the manifest. Raises `OSError`.
    """
    steps = _steps(manifest)
    site = str(steps.get("install", {}).get("site_packages", ""))
    former = {file["path"]: file for file in (slim or {}).get("files", ())}
    codes = {library["path"]: library for library in (audit or {}).get("libraries", ())}
    compiled = steps.get("bytecode", {}).get("status") == "ran"
    parts = [
        _measured(path, size, former.get(path), codes.get(path), compiled and path.endswith(".pyc"))
        for path, size in _files(root)
    ]
    for file in steps.get("files", {}).get("files", ()):
        went = int(file["bytes"])
        parts.append(Part(f"{site}/{file['path']}", 1, went, 0, Serves.NO_CODE, {"files": went}, 0))
    return _packages(parts, owners(root / site), manifest.get("packages", {}))


def of_audit(audit: Mapping[str, Any], versions: Mapping[str, str], known: Owners = NOBODY) -> list[Package]:
    """The packages of an audit: its libraries, which are all that it knows of, as they are."""
    parts = [
        Part(library["path"], 1, None, library["size"], serves(library), {}, library["foreign"])
        for library in audit["libraries"]
    ]
    return _packages(parts, known, versions, alone=True)


def of_matrix(libraries: Iterable[Mapping[str, Any]]) -> list[Package]:
    """The same of rows that are judged for every SM, and for none in particular."""
    parts = [
        Part(row["path"], 1, None, row["size"], Serves.BROKEN if row["problem"] else Serves.UNJUDGED, {}, 0)
        for row in libraries
    ]
    return _packages(parts, NOBODY, {}, alone=True)


def savings(manifest: Mapping[str, Any]) -> list[Saving]:
    """What each rule of a build freed, in the order of the build; what freed nothing is left out."""
    steps = _steps(manifest)
    found: list[Saving] = []
    slim = steps.get("slim", {})
    undo = slim.get("undo", {})
    for rule, saved in slim.get("saved", {}).items():
        found.append(Saving(rule, saved, undo.get(rule, "")))
    files = steps.get("files", {})
    found.append(Saving("files", files.get("saved", 0), files.get("undo", "")))
    code = steps.get("bytecode", {})
    found.append(Saving(BYTECODE, -code.get("bytes", 0), code.get("undo", "")))
    return [saving for saving in found if saving.bytes]


def _steps(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in manifest["steps"]}


def _files(root: Path) -> Iterator[tuple[str, int]]:
    """Every regular file below a folder, by path in it, with its size; once for all names of an inode."""
    seen: set[tuple[int, int]] = set()
    folders = [str(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.path)
                elif stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    yield os.path.relpath(entry.path, root), status.st_size


def _measured(
    path: str, size: int, former: Mapping[str, Any] | None, code: Mapping[str, Any] | None, added: bool
) -> Part:
    saved: dict[str, int] = {rule: count for rule, count in (former or {}).get("saved", {}).items() if count}
    before = former["before"] if former else 0 if added else size
    if added:
        saved = {BYTECODE: -size}
    return Part(
        path, 1, before, size, serves(code) if code else Serves.NO_CODE, saved, code["foreign"] if code else 0
    )


def _packages(
    parts: Iterable[Part], known: Owners, versions: Mapping[str, str], alone: bool = False
) -> list[Package]:
    """Parts by package; unless they stand `alone`, small ones of a package are put together."""
    by_package: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_package[known.owner(part.path)].append(part)
    numbers = {normalised(name): version for name, version in versions.items()}
    packages = []
    for name, members in by_package.items():
        shown = members if alone else [part for part in members if _size(part) >= _OWN_PART]
        small = [] if alone else [part for part in members if _size(part) < _OWN_PART]
        shown = sorted(shown, key=_size, reverse=True) + ([_together(small)] if small else [])
        packages.append(
            Package(name, numbers.get(name, ""), _sum(shown), sum(part.after for part in shown), tuple(shown))
        )
    return sorted(packages, key=lambda package: (-(package.before or package.after), package.name))


def _size(part: Part) -> int:
    return max(part.before or 0, part.after)


def _sum(parts: Iterable[Part]) -> int | None:
    sizes = [part.before for part in parts]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _together(parts: list[Part]) -> Part:
    saved: dict[str, int] = defaultdict(int)
    for part in parts:
        for rule, count in part.saved.items():
            saved[rule] += count
    words = {part.serves for part in parts} - {Serves.NO_CODE}
    word = Serves.JIT if Serves.JIT in words else min(words, default=Serves.NO_CODE)
    return Part(
        "",
        len(parts),
        _sum(parts),
        sum(part.after for part in parts),
        word,
        dict(saved),
        sum(part.foreign for part in parts),
    )
