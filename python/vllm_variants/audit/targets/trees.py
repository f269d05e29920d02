"""Libraries of files and folders on this machine, those that are still the same from the cache."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from vllm_variants.audit.cache import Cache
from vllm_variants.audit.find import examined, regular_files
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.audit.targets.files import read_file
from vllm_variants.audit.targets.found import Progress
from vllm_variants.audit.targets.processes import File, read_files


def read_tree(
    path: Path, progress: Progress, above: str = "", cache: Cache | None = None, skipped: Collection[str] = ()
) -> list[LibrarySummary]:
    """The libraries with device code in a file, a wheel or a folder, by path; `above` goes before each.

    What cannot be read inside is a library with a `problem`. `skipped` are folders directly in `path` that
    are passed over. Raises `MissingError` or `InputError` where `path` itself cannot be read.
    """
    examined(path)
    if not path.is_dir():
        return read_file(path, "", above, progress)
    root = path.resolve()
    libraries: list[LibrarySummary] = []

    def unreadable(name: str, why: str) -> None:
        libraries.append(LibrarySummary(above + name, 0, problem=f"cannot be read: {why}"))

    files = [
        (File(file, os.path.relpath(file, root), status.st_size), status)
        for file, status in regular_files(str(root), unreadable, skipped)
    ]
    kept = {
        file.path: found
        for file, status in files
        if cache and (found := cache.get(above + file.name, status)) is not None
    }
    read = read_files([file for file, _ in files if file.path not in kept], above, progress)
    for file, status in files:
        if cache and file.path in read:
            cache.keep(above + file.name, status, read[file.path])
        libraries += read[file.path] if file.path in read else kept[file.path]
    if cache:
        cache.save()
    return libraries


def inside(path: Path) -> list[Path]:
    """What a folder holds directly, sorted; empty where that cannot be listed."""
    with suppress(OSError):
        return sorted(path.iterdir())
    return []
