"""Libraries of files and folders on this machine, those that are still the same from the cache."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from vllm_variants.audit import features
from vllm_variants.audit.cache import Cache
from vllm_variants.audit.find import examined, regular_files, sources
from vllm_variants.audit.summary import LibrarySummary, summarise
from vllm_variants.audit.targets.found import Progress


def read_tree(
    path: Path, progress: Progress, above: str = "", cache: Cache | None = None, skipped: Collection[str] = ()
) -> list[LibrarySummary]:
    """The libraries with device code in a file, a wheel or a folder, by path; `above` goes before each.

    What cannot be read inside is a library with a `problem`. `skipped` are folders directly in `path` that
    are passed over. Raises `MissingError` or `InputError` where `path` itself cannot be read.
    """
    examined(path)
    if not path.is_dir():
        return _read(path, "", above, progress)
    root = path.resolve()
    libraries: list[LibrarySummary] = []

    def unreadable(name: str, why: str) -> None:
        libraries.append(LibrarySummary(above + name, 0, problem=f"cannot be read: {why}"))

    for file, status in regular_files(str(root), unreadable, skipped):
        name = os.path.relpath(file, root)
        found = cache.get(above + name, status) if cache else None
        if found is None:
            found = _read(Path(file), name, above, progress)
            if cache:
                cache.keep(above + name, status, found)
        libraries += found
    if cache:
        cache.save()
    return libraries


def _read(path: Path, name: str, above: str, progress: Progress) -> list[LibrarySummary]:
    """Of one file: the library or the wheel's libraries. `name` is empty for one that a person named."""
    libraries: list[LibrarySummary] = []

    def unreadable(member: str, why: str) -> None:
        libraries.append(LibrarySummary(_joined(above, name, member), 0, problem=f"cannot be read: {why}"))

    for member, source in sources(path, unreadable, named=not name):
        where = _joined(above, name, member)
        progress(where)
        summary = summarise(source, where, features.by_kernels(where))
        if summary and summary.has_device_code:
            libraries.append(summary)
    return libraries


def _joined(above: str, name: str, member: str) -> str:
    if not name:
        return above + member
    base = name.rpartition("/")[2]
    return above + (name if member in ("", base) else f"{name}/{member}")


def inside(path: Path) -> list[Path]:
    """What a folder holds directly, sorted; empty where that cannot be listed."""
    with suppress(OSError):
        return sorted(path.iterdir())
    return []
