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

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vllm_variants.errors import Error, InputError, MissingError, ResourceError, resource_error
from vllm_variants.model import results
from vllm_variants.model.results import DamagedError, Result
from vllm_variants.system import atomic, folders, links

_ENTRY = re.compile(r"[0-9a-f]{16}-.+-(?P<short>sm\d+(-arm64)?)-(?P<release>.+)")
_BUILDING = re.compile(r"(?P<entry>[0-9a-f]{16}-.+)\.[^.]+")
_MEMORY = re.compile(r"[0-9a-f]{24}")
_LINKS = "links"  # the lock's name; no entry is called so


@dataclass(frozen=True)
class Entry:
    """What the store holds under one name: a result, or what is wrong with it; and the links to it.

    `bytes` is its size as installed, 0 where that is not known.
    """

    path: Path
    result: Result | None
    problem: Error | None
    links: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """The size that the manifest gives."""
        return self.result.manifest.bytes.get("result", 0) if self.result else 0

    @property
    def named(self) -> tuple[str, str]:
        """The variant's short name and the release, as the entry's name says."""
        match = _ENTRY.fullmatch(self.path.name)
        return (match["short"], match["release"]) if match else ("", "")

    def as_dict(self) -> dict[str, object]:
        """The entry as JSON; `problem` and `hint` where it is damaged."""
        problem = {"problem": self.problem.message, "hint": self.problem.hint} if self.problem else {}
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "links": [str(link) for link in self.links],
            "manifest": self.result.manifest.facts if self.result else None,
            **problem,
        }


@dataclass(frozen=True)
class Removed:
    """What gc took away; `freed` counts bytes, without files that uv's cache still holds."""

    path: Path
    bytes: int
    freed: int


@dataclass(frozen=True)
class Kept:
    """What gc left alone although nobody can use it, and why."""

    path: Path
    why: str
    hint: str | None = None


@dataclass(frozen=True)
class Collected:
    """What gc did: removed, kept and worth a word, and what it was asked to remove but could not."""

    removed: tuple[Removed, ...]
    kept: tuple[Kept, ...]
    failed: tuple[Error, ...]


@dataclass(frozen=True)
class Store:
    """The store under `root`. Methods raise `ResourceError` where the disk refuses."""

    root: Path

    @classmethod
    def default(cls) -> Self:
        """The store in `$XDG_DATA_HOME`, or in `~/.local/share` without it."""
        return cls(folders.data())

    def path(self, entry: str) -> Path:
        """Where the entry of that name is, or will be."""
        return self.root / "store" / entry

    def find(self, entry: str) -> Result | None:
        """The finished result of that name, if there is a whole one.

        Raises `DamagedError` when it is broken: `publish` of a new build replaces it.
        """
        try:
            return _whole(self.path(entry))
        except MissingError:
            return None

    @contextmanager
    def lock(self, entry: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the entry for one build; calls `waiting` once when another process holds it."""
        with self._lock(entry, waiting):
            yield

    @contextmanager
    def building(self, entry: str) -> Iterator[Path]:
        """An empty folder to build in (hold the lock); removed unless `publish` took it away.

        Before, removes what killed builds left, of this entry and of all that nobody holds.
        """
        self._sweep(held=entry)
        folder = self._aside(entry)
        try:
            folder.mkdir(0o755)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, building: Path, entry: str) -> Result:
        """Make a finished build visible under its name, by one rename, once it is on the disk.

        A damaged entry of that name makes way (hold the lock). Raises `DamagedError` for a build that
        cannot be read back.
        """
        _whole(building)
        path = self.path(entry)
        try:
            _sync_file_system(building)
            folder = self._folder("store")
            old = self._set_aside(path, entry)
            building.rename(path)
            _sync_folder(folder)
        except OSError as error:
            raise resource_error(error) from error
        if old:
            _delete(old, ignore_errors=True)
        return _whole(path)

    def link(self, result: Result, link: Path) -> None:
        """Remember `link` for gc, then point it to the result by one rename."""
        link = link.absolute()
        links.require_free(link)
        folder = self._folder("links")
        memory = folder / hashlib.sha256(os.fsencode(link)).hexdigest()[:24]
        with self._lock(_LINKS):
            try:
                atomic.symlink(memory, link)
                _sync_folder(folder)
            except OSError as error:
                raise ResourceError(
                    f"the link {link} cannot be remembered for gc, and was not made: "
                    f"{error.strerror} ({folder})",
                    hint="make room, or set XDG_DATA_HOME to a folder that you can write to",
                ) from error
            links.point(link, result.path)

    def entries(self) -> list[Entry]:
        """Everything that has an entry's name, damaged or not, with its links, in the order of names."""
        linked = self._links(certain=False)
        return [_entry(path, linked.get(_resolved(path), [])) for path in self._paths()]

    def gc(self, *, dry_run: bool = False) -> Collected:
        """Remove every entry without a link and every left-over of a killed build; or only say which.

        Raises `ResourceError` when a remembered link cannot be looked at: it may keep any entry.
        """
        removed: list[Removed] = []
        kept = list(self._foreign())
        failed: list[Error] = []
        linked = self._links()
        for path, entry in [*((p, p.name) for p in self._paths()), *self._leftovers()]:
            if from_where := linked.get(_resolved(path)):
                problem = _entry(path, from_where).problem
                if isinstance(problem, DamagedError):
                    kept.append(Kept(path, f"damaged, and linked from {from_where[0]}", problem.hint))
                continue
            try:
                if gone := self._remove(path, entry, dry_run):
                    removed.append(gone)
            except OSError as error:
                failed.append(resource_error(error))
        if not dry_run:
            self._forget()
        return Collected(tuple(removed), tuple(kept), tuple(failed))

    def _remove(self, path: Path, entry: str, dry_run: bool) -> Removed | None:
        """Remove an entry or a left-over, unless somebody holds it, links to it or took it away."""
        with self._try_lock(entry) as ours:
            # Only now is it certain: a build links what it finds while it holds this lock.
            if not ours or not os.path.lexists(path) or _resolved(path) in self._links():
                return None
            total, freed = disk_use(path)
            if not dry_run:
                aside = self._set_aside(path, entry)  # at once invisible, whatever becomes of the removal
                if aside:
                    _delete(aside)
            return Removed(path, total, freed)

    def _sweep(self, held: str) -> None:
        """Remove what killed builds left; of the entry `held`, its lock is ours."""
        for path, entry in self._leftovers():
            if entry == held:
                self._discard(path, entry)
                continue
            with self._try_lock(entry) as ours:
                if ours:
                    self._discard(path, entry)

    def _discard(self, path: Path, entry: str) -> None:
        """Remove what is at `path`, as far as it can be: moved first, so that no orphan writes into it."""
        with suppress(OSError):
            if aside := self._set_aside(path, entry):
                _delete(aside, ignore_errors=True)

    def _set_aside(self, path: Path, entry: str) -> Path | None:
        """Move what is at `path` out of sight (hold the lock); where it is now, None without anything."""
        aside = self._aside(entry)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        return aside

    def _aside(self, entry: str) -> Path:
        return self._folder("building") / f"{entry}.{secrets.token_hex(4)}"

    def _paths(self) -> list[Path]:
        """Where entries are, in the order of their names."""
        return [path for path in _children(self.root / "store") if _ENTRY.fullmatch(path.name)]

    def _leftovers(self) -> list[tuple[Path, str]]:
        """What is in building/, and the entry that each was made for."""
        found = [(path, _BUILDING.fullmatch(path.name)) for path in _children(self.root / "building")]
        return [(path, match["entry"]) for path, match in found if match]

    def _foreign(self) -> Iterator[Kept]:
        """What somebody put into our folders."""
        for name, ours in (("store", _ENTRY), ("building", _BUILDING), ("links", _MEMORY)):
            for path in _children(self.root / name):
                is_ours = ours.fullmatch(path.name) and (name != "links" or path.is_symlink())
                if not is_ours and not atomic.leftover_target(path):
                    yield Kept(path, "not made by vllm-variants")

    def _links(self, *, certain: bool = True) -> dict[Path, list[Path]]:
        """Result paths → the links that point to them, whether or not there is something.

        Where a link cannot be looked at, raises `ResourceError`, or passes it over unless `certain`.
        """
        found: dict[Path, list[Path]] = {}
        for memory in self._memories():
            link = _remembered(memory)
            try:
                if link and _is_link(link, memory):
                    found.setdefault(_resolved(link), []).append(link)
            except ResourceError:
                if certain:
                    raise
        return found

    def _memories(self) -> Iterable[Path]:
        return (path for path in _children(self.root / "links") if _MEMORY.fullmatch(path.name))

    def _forget(self) -> None:
        """Forget the links that are gone; a link that is just being made is not: its maker has the lock."""
        if not any(self._memories()):
            return
        with self._lock(_LINKS):
            for memory in self._memories():
                link = _remembered(memory)
                if link and not _is_link(link, memory):
                    with suppress(OSError):
                        memory.unlink()
        for path in _children(self.root / "links"):
            with suppress(OSError):
                atomic.remove_leftover(path)

    @contextmanager
    def _lock(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        descriptor = self._lock_file(name)
        try:
            if not _locked(descriptor):
                waiting()
                _locked(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        descriptor = self._lock_file(name)
        try:
            yield _locked(descriptor)
        finally:
            os.close(descriptor)

    def _lock_file(self, name: str) -> int:
        path = self._folder("locks") / name
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ResourceError(
                f"the lock {path} cannot be made: {error.strerror}",
                hint="make room, or set XDG_DATA_HOME to a folder that you can write to",
            ) from error

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"the store's folder {folder} cannot be made: {error.strerror}",
                hint="set XDG_DATA_HOME to a folder that you can write to",
            ) from error
        return folder


def disk_use(tree: Path) -> tuple[int, int]:
    """Apparent bytes of a tree's files, and the bytes on disk that only this tree holds.

    A file with more hard links than the tree has of it is shared (with uv's cache) and stays.
    """
    seen: dict[tuple[int, int], list[int]] = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            try:
                stat = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (100,000 files: no Path each)
            except FileNotFoundError:  # gone since it was listed
                continue
            entry = seen.setdefault(
                (stat.st_dev, stat.st_ino), [stat.st_size, stat.st_blocks * 512, stat.st_nlink]
            )
            entry[2] -= 1
    return sum(e[0] for e in seen.values()), sum(e[1] for e in seen.values() if e[2] == 0)


def _whole(path: Path) -> Result:
    """The result at `path`, with an interpreter; `DamagedError` when something of it is lost."""
    result = results.read(path)
    results.require_python(result)
    return result


def _entry(path: Path, linked: list[Path]) -> Entry:
    """What is at `path`; a damaged entry's problem names the command that builds it anew."""
    try:
        return Entry(path, _whole(path), None, tuple(linked))
    except (DamagedError, MissingError) as error:
        short, release = Entry(path, None, None, ()).named
        again = f"vllm-variants build {short} --release {release}"
        problem: Error = DamagedError(error.message, hint=f"build it anew: {again}")
    except (InputError, ResourceError) as error:
        problem = error
    return Entry(path, None, problem, tuple(linked))


def _children(folder: Path) -> list[Path]:
    """What is in one of the store's folders, by name; nothing where there is none yet."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResourceError(
            f"the store's folder {folder} cannot be read: {error.strerror}",
            hint="set XDG_DATA_HOME to a folder of your own",
        ) from error


def _remembered(memory: Path) -> Path | None:
    """The link that is remembered; None when it was forgotten meanwhile, or is no memory of ours."""
    try:
        return memory.readlink()
    except OSError:
        return None


def _resolved(path: Path) -> Path:
    """Where a path leads, as far as it does; a loop of links leads to itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        return path


def _is_link(link: Path, memory: Path) -> bool:
    try:
        return link.is_symlink()
    except OSError as error:
        raise ResourceError(
            f"the link {link} cannot be looked at, and may keep a result: {error.strerror}",
            hint=f"run it as one who may look there, or forget the link: rm {memory}",
        ) from error


def _locked(descriptor: int, *, wait: bool = False) -> bool:
    """Take the lock of an open file; False when another holds it and `wait` is not set."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise resource_error(error) from error
    return True


def _delete(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a tree, or a file or link; what somebody else removes meanwhile is no error."""
    while os.path.lexists(path):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:  # of something inside: the rest is still there
            continue
        except OSError:
            if not ignore_errors:
                raise
            shutil.rmtree(path, ignore_errors=True)
            return


def _sync_file_system(tree: Path) -> None:
    """Bring all of the tree's bytes to the disk with one call: it has tens of thousands of files."""
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:  # no Linux
            os.sync()
        elif syncfs(descriptor) and (code := ctypes.get_errno()) not in _NO_SYNC:
            raise OSError(code, os.strerror(code), str(tree))
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        atomic.sync_folder(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


# What a file system says that has no such call (some of FUSE, some network ones).
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
