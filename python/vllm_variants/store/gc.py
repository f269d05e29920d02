"""What gc removes: entries that nothing links to, and what killed builds left; nothing that is in use."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import Error, resource_error
from vllm_variants.model.results import DamagedError
from vllm_variants.store import disk, links, locks
from vllm_variants.store.entries import entry_at
from vllm_variants.store.folders import StoreFolders


@dataclass(frozen=True)
class Removed:
    """What gc took away; `freed` counts bytes, without files that uv's cache still holds."""

    path: Path
    bytes: int
    freed: int


@dataclass(frozen=True)
class Kept:
    """What gc left although nobody can use it, why, and the command that helps, if any."""

    path: Path
    why: str
    hint: str | None = None


@dataclass(frozen=True)
class Collected:
    """What gc did: removed, kept and worth a word, and what it should have removed but could not."""

    removed: tuple[Removed, ...]
    kept: tuple[Kept, ...]
    failed: tuple[Error, ...]


def collect(folders: StoreFolders, *, dry_run: bool = False) -> Collected:
    """Remove every entry without a link and every leftover of a killed build; or only say which.

    Raises `ResourceError` when a remembered link cannot be looked at: it may keep any entry.
    """
    removed: list[Removed] = []
    kept = [Kept(path, "not made by vllm-variants") for path in folders.foreign()]
    failed: list[Error] = []
    links_to = links.by_target(folders)
    for path, entry in [*((p, p.name) for p in folders.entries()), *folders.leftovers()]:
        if linked_from := links_to.get(links.resolved(path)):
            problem = entry_at(path, linked_from).problem
            if isinstance(problem, DamagedError):
                kept.append(Kept(path, f"damaged, and linked from {linked_from[0]}", problem.hint))
            continue
        try:
            if gone := _remove(folders, path, entry, dry_run):
                removed.append(gone)
        except OSError as error:
            failed.append(resource_error(error))
    if not dry_run:
        links.forget_gone(folders)
    return Collected(tuple(removed), tuple(kept), tuple(failed))


def sweep(folders: StoreFolders, held: str) -> None:
    """Remove what killed builds left in building/, but for builds under way; the lock of `held` is ours."""
    for path, entry in folders.leftovers():
        if entry == held:
            _discard(folders, path, entry)
            continue
        with locks.try_hold(folders.lock(entry)) as ours:
            if ours:
                _discard(folders, path, entry)


def _remove(folders: StoreFolders, path: Path, entry: str, dry_run: bool) -> Removed | None:
    """Remove an entry or a leftover, unless somebody holds it, links to it or took it away."""
    with locks.try_hold(folders.lock(entry)) as ours:
        # Only now is it certain: a build links the entry it uses while it holds this lock.
        if not ours or not os.path.lexists(path) or links.resolved(path) in links.by_target(folders):
            return None
        total, freed = disk.disk_use(path)
        if not dry_run:
            aside = folders.set_aside(path, entry)  # at once invisible, whatever becomes of the removal
            if aside:
                disk.delete(aside)
        return Removed(path, total, freed)


def _discard(folders: StoreFolders, path: Path, entry: str) -> None:
    """Remove what is at `path`, as far as it can be: moved first, so that no orphan writes into it."""
    with suppress(OSError):
        if aside := folders.set_aside(path, entry):
            disk.delete(aside, ignore_errors=True)
