"""The store: immutable results, the links that keep them, and what removes the rest.

    $XDG_DATA_HOME/vllm-variants/
        store/<hash>-<variant>-<release>/    a result, visible only when whole
        building/<entry>.<random>/           a build under way, or what a killed one left
        locks/<entry>                        held (flock) from a build's start to its link
        links/<hash>                         → a ./result-… link somewhere, so that gc knows it

An entry appears by one rename and a link by another, so nobody ever sees half of either.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vllm_variants import links, results
from vllm_variants.errors import Error, ResourceError
from vllm_variants.results import Result


@dataclass(frozen=True)
class Entry:
    """A result in the store, the links that point to it, and its size in bytes as installed."""

    result: Result
    links: tuple[Path, ...]
    bytes: int

    def as_dict(self) -> dict[str, object]:
        """The entry as JSON."""
        return {
            "path": str(self.result.path),
            "bytes": self.bytes,
            "links": [str(link) for link in self.links],
            "manifest": self.result.manifest.facts,
        }


@dataclass(frozen=True)
class Removed:
    """What gc took away; `freed` counts bytes, without files that uv's cache still holds."""

    path: Path
    bytes: int
    freed: int


@dataclass(frozen=True)
class Store:
    """The store under `root`. Methods raise `ResourceError` where the disk refuses."""

    root: Path

    @classmethod
    def default(cls) -> Self:
        """The store in `$XDG_DATA_HOME`, or in `~/.local/share` without it."""
        named = os.environ.get("XDG_DATA_HOME", "")
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "share"
        return cls(base / "vllm-variants")

    def path(self, entry: str) -> Path:
        """Where the entry of that name is, or will be."""
        return self.root / "store" / entry

    def find(self, entry: str) -> Result | None:
        """The finished result of that name, if there is one."""
        path = self.path(entry)
        return results.read(path) if path.exists() else None

    @contextmanager
    def lock(self, entry: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the entry for one build; calls `waiting` once when another process holds it."""
        folder = self._folder("locks")
        with open(folder / entry, "a") as handle:  # noqa: PTH123 (flock wants the plain file)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def building(self, entry: str) -> Iterator[Path]:
        """An empty folder to build in (hold the lock); removed unless `publish` took it away."""
        parent = self._folder("building")
        for left in parent.glob(f"{entry}.*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{entry}.", dir=parent))
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, building: Path, entry: str) -> Result:
        """Make a finished build visible under its name, by one rename."""
        results.read(building)  # never publish what could not be read back
        self._folder("store")
        building.rename(self.path(entry))
        return results.read(self.path(entry))

    def link(self, result: Result, link: Path) -> None:
        """Point `link` to the result by one rename, and remember it for gc."""
        link = link.absolute()
        links.point(link, result.path)
        memory = self._folder("links") / hashlib.sha256(os.fsencode(link)).hexdigest()[:24]
        with suppress(FileExistsError):
            memory.symlink_to(link)

    def entries(self) -> list[Entry]:
        """Every readable result, with its links, in the order of their names."""
        linked = self._links()
        found = []
        for path in sorted((self.root / "store").glob("*")):
            with suppress(Error):
                result = results.read(path)
                sizes = result.manifest.facts.get("bytes", {})
                found.append(Entry(result, tuple(linked.get(result.path, ())), int(sizes.get("result", 0))))
        return found

    def gc(self) -> list[Removed]:
        """Remove every entry without a link and every left-over of a killed build."""
        kept = set(self._links())
        left = [p for p in (self.root / "store").glob("*") if p.resolve() not in kept]
        left += (self.root / "building").glob("*")
        return [removed for path in sorted(left) if (removed := self._remove(path))]

    def _remove(self, path: Path) -> Removed | None:
        entry = path.name if path.parent.name == "store" else path.name.rpartition(".")[0]
        with open(self._folder("locks") / entry, "a") as handle:  # noqa: PTH123
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None  # a build is at work on it
            total, freed = disk_use(path)
            aside = self._folder("building") / f"{entry}.removing"
            path.rename(aside)  # at once invisible, whatever becomes of the removal
            shutil.rmtree(aside)
            return Removed(path, total, freed)

    def _links(self) -> dict[Path, list[Path]]:
        """Result paths → the links that still point to them; forgets links that are gone."""
        found: dict[Path, list[Path]] = {}
        for memory in sorted((self.root / "links").glob("*")):
            link = memory.readlink()
            if link.is_symlink() and link.exists():
                found.setdefault(link.resolve(), []).append(link)
            else:
                memory.unlink(missing_ok=True)
        return found

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"the store's folder {folder} cannot be made: {error.strerror}",
                mend="set XDG_DATA_HOME to a folder that you can write to",
            ) from error
        return folder


def disk_use(tree: Path) -> tuple[int, int]:
    """Apparent bytes of a tree's files, and the bytes on disk that only this tree holds.

    A file with more hard links than the tree has of it is shared (with uv's cache) and stays.
    """
    seen: dict[tuple[int, int], list[int]] = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            stat = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (100,000 files: no Path each)
            entry = seen.setdefault(
                (stat.st_dev, stat.st_ino), [stat.st_size, stat.st_blocks * 512, stat.st_nlink]
            )
            entry[2] -= 1
    return sum(e[0] for e in seen.values()), sum(e[1] for e in seen.values() if e[2] == 0)
