"""Libraries to audit: in a file, a wheel, a directory, a result, or a store path with its closure."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from vllm_variants.errors import InputError, MissingError
from vllm_variants.fatbin.slim import is_elf, regular_files
from vllm_variants.fatbin.source import Source, WheelMember, mapped

_SMALLEST = 4096
"""Bytes; less cannot hold an ELF file with an image."""
_TEXT = (".py", ".pyc", ".pyi", ".h", ".hpp", ".cuh", ".json", ".txt")


def sources(path: Path, root: Path | None = None) -> Iterator[tuple[str, Source]]:
    """Every file under `path` that may hold device code, open, with its path from `root` on.

    A symbolic link is followed only when it is `path` itself: what lies in a tree is counted where
    it lies, once for all names of an inode.
    """
    if path.is_dir():
        yield from _in_directory(path.resolve(), root or path.resolve())
    elif not path.exists():
        raise MissingError(f"{path} does not exist")
    elif zipfile.is_zipfile(path):
        yield from _in_wheel(path)
    else:
        with mapped(path) as source:
            yield path.name if root is None else str(path.relative_to(root)), source


def _in_directory(folder: Path, root: Path) -> Iterator[tuple[str, Source]]:
    files = [(names[0], size) for size, names in regular_files(folder).values()]
    for name, size in sorted(files):
        if size < _SMALLEST or name.endswith(_TEXT):
            continue
        if name.endswith(".whl"):
            yield from _in_wheel(Path(name))
        elif is_elf(name):
            with mapped(Path(name)) as source:
                yield str(Path(name).relative_to(root)), source


def _in_wheel(path: Path) -> Iterator[tuple[str, Source]]:
    try:
        with zipfile.ZipFile(path) as wheel:
            for member in sorted(wheel.infolist(), key=lambda member: member.filename):
                if member.file_size < _SMALLEST:
                    continue
                with closing(WheelMember(wheel, member)) as source:
                    if source.at(0, 4) == b"\x7fELF":
                        yield member.filename, source
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not a readable wheel: {error}") from error


def closure(path: Path) -> list[Path]:
    """A store path and all it needs at run time, as Nix knows it."""
    try:
        done = subprocess.run(
            ["nix-store", "--query", "--requisites", str(path.resolve())],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise MissingError("--closure asks nix-store, which is not installed") from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"{path} has no closure: {error.stderr.strip()}") from error
    return [Path(line) for line in done.stdout.splitlines()]
