"""Files and links that appear whole or not at all, whatever happens and whoever else is at work.

What is not finished lies beside its target under a name of ours, `.NAME.RANDOM.vllm-variants-new`,
and its writer holds a lock on it. So two writers of one target never touch each other's file, and
what a killed writer left is known by two signs: the name, and that nobody holds the lock. Nothing
else is ever removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.system import interruption

_SUFFIX = ".vllm-variants-new"
_OURS = re.compile(r"\.(?P<target>.*)\.[0-9a-f]{12}" + re.escape(_SUFFIX), re.DOTALL)
_LONGEST = 255 - len("..") - 12 - len(_SUFFIX)
"""Bytes of the target's name that fit in a file name beside the rest."""
_ATTEMPTS = 5


@dataclass(frozen=True)
class NewFile:
    """A file that will become `target` when it is published: open for writing, invisible until then."""

    target: Path
    path: Path
    descriptor: int

    def publish(self, *, durable: bool = True) -> None:
        """Give the file its target's name, in one step; with `durable` its bytes are on the disk before.

        Raises `OSError`; `FileNotFoundError` when the file at `path` is no longer the one that was written.
        """
        if not _same_file(self.path, self.descriptor):
            raise FileNotFoundError(
                errno.ENOENT, "the new file was replaced while it was written", str(self.path)
            )
        if durable:
            os.fsync(self.descriptor)
        self.path.replace(self.target)
        if durable:
            sync_folder(self.target.parent)


@contextmanager
def new_file(target: Path, mode: int = 0o600) -> Iterator[NewFile]:
    """A new file beside `target`, to write into and to `publish`; gone afterwards when it was not.

    Raises `OSError` where the folder cannot be written to.
    """
    with interruption.held() as held:
        path, descriptor = _create(target, mode)
        try:
            held.release()  # from here on it is removed
            yield NewFile(target, path, descriptor)
        finally:
            if _same_file(path, descriptor):
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)


def write(target: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write a file whole or not at all; an existing one keeps its mode. Raises `OSError`."""
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(target.stat().st_mode)
    with new_file(target) as new:
        with os.fdopen(os.dup(new.descriptor), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.fchmod(new.descriptor, mode)
        new.publish()


def symlink(link: Path, destination: Path | str) -> None:
    """Point `link` to `destination`, replacing a link or file of that name in one step. Raises `OSError`."""
    _renamed_over(link, lambda aside: aside.symlink_to(destination))


def hard_link(name: Path, existing: Path, *, over: tuple[int, int] | None = None) -> bool:
    """Make `name` another name of the file `existing`, replacing a file in one step. Raises `OSError`.

    `over`: only where `name` is the file of that device and inode number; whether it was.
    """

    def is_that_file() -> bool:
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == over

    return _renamed_over(name, lambda aside: os.link(existing, aside), is_that_file if over else None)


def is_leftover_name(name: str) -> bool:
    """Whether a file's name, without its folder, is one that this module gives to unfinished files."""
    return name.endswith(_SUFFIX) and _OURS.fullmatch(name) is not None


def leftover_target(path: Path) -> Path | None:
    """The target that an unfinished file was made for; None for a name that this module does not give."""
    match = _OURS.fullmatch(path.name)
    return path.with_name(match["target"]) if match else None


def is_leftover_of(path: Path, target: Path) -> bool:
    """Whether `path` has a name that `name_beside` gives for `target`."""
    return path.name.endswith(_SUFFIX) and leftover_target(path) == _shortened(target)


def remove_leftover(path: Path) -> bool:
    """Remove what a killed writer left at `path`; False when it has another name, or its writer is at work.

    Raises `OSError` where it cannot be removed.
    """
    if leftover_target(path) is None:
        return False
    try:
        if path.is_symlink():
            path.unlink()
            return True
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def remove_leftovers_of(target: Path) -> None:
    """Remove what killed writers of `target` left beside it; what cannot be removed stays."""
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            path = target.with_name(entry.name)
            if is_leftover_of(path, target):
                with suppress(OSError):
                    remove_leftover(path)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a rename outlives a power cut; raise `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(target: Path, mode: int) -> tuple[Path, int]:
    """A new, locked file beside `target`; made again if it was swept before the lock was held."""
    while True:
        path = name_beside(target)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(path, descriptor):
                return path, descriptor
        os.close(descriptor)


def _renamed_over(
    name: Path, make: Callable[[Path], None], allowed: Callable[[], bool] | None = None
) -> bool:
    """Make something beside `name` and rename it over; again if it was swept in between (it has no lock).

    Whether it did: `allowed` is asked at the last moment.
    """
    for attempt in range(_ATTEMPTS):
        aside = name_beside(name)
        try:
            make(aside)
            if allowed and not allowed():
                return False
            aside.replace(name)
            return True
        except FileNotFoundError:
            if attempt + 1 == _ATTEMPTS or not name.parent.is_dir():
                raise
        finally:  # renaming over another name of the same file leaves both names
            with suppress(OSError):
                aside.unlink()
    raise AssertionError("unreachable: the last attempt returns or raises")


def name_beside(target: Path) -> Path:
    """A new path beside `target`, hidden and unused, for what is to be renamed to it."""
    return target.with_name(f".{_shortened(target).name}.{secrets.token_hex(6)}{_SUFFIX}")


def _shortened(target: Path) -> Path:
    """The target as far as its name fits beside the rest."""
    return target.with_name(os.fsdecode(os.fsencode(target.name)[:_LONGEST]))


def _same_file(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the open file."""
    try:
        found, opened = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)
