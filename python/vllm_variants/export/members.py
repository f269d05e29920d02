"""The files of a wheel, found again in the tree that an installer made of it.

What an installer adds is left out: its own notes, the programs of entry points, bytecode. What it moved goes
back to where a wheel has it (PyPA's "Binary distribution format", "The .data directory"), and a program
gets back the first line that installers replace.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.export.checked import lost
from vllm_variants.export.packages import Package, Row

_OF_INSTALLERS = frozenset(
    {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "provenance_url.json", "uv_build.json"}
    | {"uv_cache.json"}
)
_SIGNATURES = frozenset({"RECORD.jws", "RECORD.p7s"})
"""Signatures of the published RECORD: they would be false of another."""
_RELOCATABLE = re.compile(rb"#!/bin/sh\n'''exec' [^\n]*'python[0-9.]*' \"\$0\" \"\$@\"\n' '''\n")
"""How uv begins a program in an environment that can be moved."""
_LONGEST_SCRIPT = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file of a wheel: its name there, and the file it is read from, or its bytes in `data`.

    `recorded` is the hash that the RECORD of the tree has of the file, None where it has none. `replaced` is
    the number of bytes at its beginning that `data` stands for.
    """

    name: str
    path: Path | None = None
    data: bytes = b""
    recorded: str | None = None
    replaced: int = 0
    executable: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) + (self.path.stat().st_size - self.replaced if self.path else 0)


def of_package(package: Package, stem: str) -> list[Member]:
    """The files of a package's wheel but its RECORD, by name; `stem` begins its dist-info: `torch-2.9.1`.

    Raises `DamagedError` for a file that the tree has lost.
    """
    members = []
    for row in package.rows:
        path = os.path.normpath(row.path)
        if _is_of_the_wheel(package, path):
            members.append(_member(package, row, _name(package, path, stem)))
    return sorted(members, key=lambda member: member.name)


def _is_of_the_wheel(package: Package, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    if folder == package.info.name:
        return name not in _OF_INSTALLERS | _SIGNATURES
    if path.endswith(".pyc") and folder.endswith("__pycache__"):
        return False
    return not (_outside(path).startswith("bin/") and name in package.programs)


def _outside(path: str) -> str:
    """A path below the environment, of a file that lies outside of site-packages; empty for one inside."""
    return re.sub(r"^(\.\./)+", "", path) if path.startswith("../") else ""


def _name(package: Package, path: str, stem: str) -> str:
    outside = _outside(path)
    if outside.startswith("bin/"):
        return f"{stem}.data/scripts/{outside.removeprefix('bin/')}"
    if outside:
        return f"{stem}.data/data/{outside}"
    if path.startswith(f"{package.info.name}/"):
        return f"{stem}.dist-info/{path.partition('/')[2]}"
    return path


def _member(package: Package, row: Row, name: str) -> Member:
    path = package.site / row.path
    try:
        status = path.stat()
        head = _first_lines(path) if ".data/scripts/" in name and status.st_size < _LONGEST_SCRIPT else None
    except OSError as error:
        raise lost(path) from error
    start = b"#!python\n" if head else b""
    executable = bool(status.st_mode & 0o111)
    return Member(name, path, start, row.hash or None, len(head or b""), executable)


def _first_lines(path: Path) -> bytes | None:
    with path.open("rb") as file:
        match = _RELOCATABLE.match(file.read(512))
    return match[0] if match else None
