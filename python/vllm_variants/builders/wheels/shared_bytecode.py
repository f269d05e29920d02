"""Bytecode that another result of the store has: taken as another name of its file, and not compiled again.

A module's bytecode is decided by its source, its name in site-packages and Python's version. So it is
taken where all three are the same: the source as the same file (uv's cache gives it to both) or as
the same bytes. Damage does not spread: the other result's manifest has a digest of all its bytecode,
which must hold first.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.model.results import Result


@dataclass(frozen=True)
class Compiled:
    """A result's bytecode: below `site` (site-packages), by Python `version` (3.12.1), and its digest."""

    site: Path
    version: str
    digest: str


def target(name: str, version: str) -> str:
    """Where the bytecode of module file `a/b.py` lies: `a/__pycache__/b.cpython-312.pyc`."""
    folder, slash, file = name.rpartition("/")
    tag = "".join(version.split(".")[:2])
    return f"{folder}{slash}__pycache__/{file.removesuffix('.py')}.cpython-{tag}.pyc"


def recorded(result: Result) -> Compiled | None:
    """What a result's manifest says of its bytecode; None where it has none, or nothing to hold it to."""
    steps = {step.get("name"): step for step in result.manifest.facts.get("steps") or ()}
    digest = steps.get("bytecode", {}).get("sha256")
    place = steps.get("install", {}).get("site_packages")
    version = result.manifest.facts.get("python")
    if isinstance(digest, str) and isinstance(place, str) and isinstance(version, str):
        return Compiled(result.path / place, version, digest)
    return None


def digest_of(site: Path, names: Iterable[str]) -> str:
    """The SHA-256 over names, sizes and bytes of files below `site`, ordered by name. Raises `OSError`."""
    digest = hashlib.sha256()
    for name in sorted(names):
        content = (site / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def bytecode_below(site: Path) -> list[str]:
    """Every bytecode file below `site`, relative to it."""
    found = []
    for folder, _, files in os.walk(site):
        if folder.endswith("/__pycache__"):
            found += [os.path.relpath(f"{folder}/{name}", site) for name in files if name.endswith(".pyc")]
    return found


def take(names: Sequence[str], site: Path, version: str, others: Iterable[Compiled]) -> frozenset[str]:
    """Give modules of `site` the bytecode that the first whole one of `others` has; those that got it.

    What cannot be linked or does not fit is left to be compiled.
    """
    for other in others:
        if other.version == version and other.site != site and _is_whole(other):
            return frozenset(name for name in names if _taken(name, site, version, other.site))
    return frozenset()


def _is_whole(other: Compiled) -> bool:
    with suppress(OSError):
        return digest_of(other.site, bytecode_below(other.site)) == other.digest
    return False


def _taken(name: str, site: Path, version: str, other: Path) -> bool:
    with suppress(OSError):
        if not _same_file(site / name, other / name):
            return False
        place = site / target(name, version)
        place.parent.mkdir(exist_ok=True)
        os.link(other / target(name, version), place, follow_symlinks=False)
        return True
    return False


def _same_file(one: Path, two: Path) -> bool:
    """Whether two sources are one file, or regular files of the same bytes. Raises `OSError`."""
    if two.is_symlink():
        return False
    return one.samefile(two) or filecmp.cmp(one, two, shallow=False)
