"""The store: immutable results, the links that keep them, and what removes the rest.

    $XDG_DATA_HOME/vllm-variants/
        store/<hash>-<variant>-<release>/    a result, visible only when whole
        building/<entry>.<random>/           a build under way, or what a killed one left
        locks/<entry>                        held (flock) from a build's start to its link
        locks/links                          held while a link is made, or forgotten
        links/<hash>                         → a ./result-… link somewhere, so that gc knows it

An entry appears by one rename and a link by another, so nobody ever sees half of either. What has
another name than these is somebody's, and is never removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vllm_variants.errors import MissingError, resource_error
from vllm_variants.model.results import Result
from vllm_variants.store import disk, gc, links, locks
from vllm_variants.store.disk import disk_use
from vllm_variants.store.entries import Entry, entry_at, whole
from vllm_variants.store.folders import StoreFolders
from vllm_variants.store.gc import Collected, Kept, Removed
from vllm_variants.system import folders as user_folders
from vllm_variants.system import interruption

__all__ = ["Collected", "Entry", "Kept", "Removed", "Store", "disk_use"]


@dataclass(frozen=True)
class Store:
    """The store under `root`. Methods raise `ResourceError` where the disk refuses."""

    root: Path

    @classmethod
    def default(cls) -> Self:
        """The store in `$XDG_DATA_HOME`, or in `~/.local/share` without it."""
        return cls(user_folders.data())

    @property
    def _folders(self) -> StoreFolders:
        return StoreFolders(self.root)

    def path(self, entry: str) -> Path:
        """Where the entry of that name is, or will be."""
        return self._folders.entry(entry)

    def find(self, entry: str) -> Result | None:
        """The finished result of that name, if there is a whole one.

        Raises `DamagedError` when it is broken: `publish` of a new build replaces it.
        """
        try:
            return whole(self.path(entry))
        except MissingError:
            return None

    @contextmanager
    def lock(self, entry: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the entry for one build; calls `waiting` once when another process holds it."""
        with locks.hold(self._folders.lock(entry), waiting):
            yield

    @contextmanager
    def building(self, entry: str) -> Iterator[Path]:
        """An empty folder to build in (hold the lock); removed unless `publish` took it away.

        Before, removes what killed builds left, of this entry and of all that nobody holds.
        """
        gc.sweep(self._folders, held=entry)
        folder = self._folders.aside(entry)
        try:
            folder.mkdir(0o755)
            yield folder
        finally:
            with interruption.held():  # impatience would leave the rest of it
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, building: Path, entry: str) -> Result:
        """Make a finished build visible under its name, by one rename, once it is on the disk.

        A damaged entry of that name makes way (hold the lock). Raises `DamagedError` for a build that
        cannot be read back.
        """
        whole(building)
        path = self.path(entry)
        try:
            disk.sync_file_system(building)
            folder = self._folders.made("store")
            replaced = self._folders.set_aside(path, entry)
            building.rename(path)
            disk.sync_folder(folder)
        except OSError as error:
            raise resource_error(error) from error
        if replaced:
            disk.delete(replaced, ignore_errors=True)
        return whole(path)

    def link(self, result: Result, link: Path) -> None:
        """Remember `link` for gc, then point it to the result by one rename.

        Raises `Error` when something that is no link has its name.
        """
        links.make(self._folders, link, result.path)

    def entries(self) -> list[Entry]:
        """Everything that has an entry's name, damaged or not, with its links, in the order of names."""
        links_to = links.by_target(self._folders, certain=False)
        return [entry_at(path, links_to.get(links.resolved(path), ())) for path in self._folders.entries()]

    def gc(self, *, dry_run: bool = False) -> Collected:
        """Remove every entry without a link and every leftover of a killed build; or only say which.

        Raises `ResourceError` when a remembered link cannot be looked at: it may keep any entry.
        """
        return gc.collect(self._folders, dry_run=dry_run)
