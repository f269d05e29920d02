"""Write a new file beside an old one, with all its metadata, and rename it into place.

It is either old or new at any moment, and what shares its inode (a package cache's hard link) keeps
the old bytes. It is renamed only over the very file that was read: a file that somebody replaced
meanwhile stays theirs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vllm_variants.errors import Error, InputError, ResourceError, UsageError
from vllm_variants.fatbin.layout import Copy, Literal
from vllm_variants.fatbin.source import OpenFile, opened
from vllm_variants.system import atomic

_BLOCK = 1 << 16
"""Bytes; shorter ranges are read and written."""
_STEP = 1 << 26
"""Bytes that the kernel copies in one go, so that a signal is heard soon."""
_PATIENCE = 10.0
"""Seconds to wait for another process that publishes a slimmed version of the same file."""


class Untouched(Error):
    """A library stays as it is for a reason outside it: somebody replaced it, or it cannot be read."""


class ChangedMeanwhile(Untouched):
    """Somebody replaced, removed or wrote to a library while it was slimmed."""


class Unwritable(ResourceError):
    """The new file cannot be written where it must be; the old one stays."""


def copy_file(path: Path, to: Path | None = None, *, durable: bool = True) -> None:
    """Copy a file with all its metadata `to` a path that must not exist, whole or not at all.

    Without `to`, the copy replaces the file: its name gets an inode of its own. Raises `Untouched`,
    `Unwritable` or `ResourceError` (no room).
    """
    target = to or path
    with reading(path) as source, writing(target), atomic.new_file(target) as new:
        os.truncate(new.descriptor, source.size)
        for offset, length in _written_ranges(source, 0, source.size):
            _copy(source.descriptor, offset, new.descriptor, offset, length)
        same_metadata(source, new.descriptor, elsewhere=bool(to))
        publish(source, new, replaces=not to, durable=durable)


def _written_ranges(source: OpenFile, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what was ever written of `source[start:end]`: a sparse file is copied as one."""
    while start < end:
        try:
            data = os.lseek(source.descriptor, start, os.SEEK_DATA)
            hole = os.lseek(source.descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system that does not know its holes
                yield start, end - start
            return  # nothing but a hole is left
        if data < end:
            yield data, min(hole, end) - data
        start = hole


@contextmanager
def reading(path: Path) -> Iterator[OpenFile]:
    """An open file; raise `Untouched` where it cannot be read, `InputError` where it is no regular file."""
    with ExitStack() as stack:
        try:
            source = stack.enter_context(opened(path))
        except FileNotFoundError as error:
            raise Untouched(f"{path} was removed") from error
        except OSError as error:
            raise Untouched(f"{path} cannot be read: {error.strerror}") from error
        yield source


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the operating system refuses while `target` is written, as a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no room to write the slimmed {target}", hint="free some space and try again"
            ) from error
        raise Unwritable(
            f"{target} cannot be written: {error.strerror or error}",
            hint="a new file is made beside it: its folder must be writable",
        ) from error


def publish(source: OpenFile, new: atomic.NewFile, *, replaces: bool, durable: bool) -> None:
    """Rename the new file to its target: over the source if it `replaces` it, else over nothing.

    Raises `Untouched` when the source is not what it was, or not where it was.
    """
    if durable:
        os.fsync(new.descriptor)  # takes long: before the last look at the old file, not behind it
    with _only_publisher(source):
        now = os.fstat(source.descriptor)
        if (now.st_size, now.st_mtime_ns) != (source.size, source.status.st_mtime_ns):
            raise _meanwhile(source.name, "written to")
        if not replaces:
            if os.path.lexists(new.target):
                raise UsageError(f"{new.target} exists already", hint="choose another output, or remove it")
        else:
            try:
                found = os.lstat(new.target)
            except FileNotFoundError:
                raise _meanwhile(source.name, "removed") from None
            if (found.st_dev, found.st_ino) != (now.st_dev, now.st_ino):
                raise _meanwhile(source.name, "replaced")
        new.publish(durable=False)
    if durable:
        atomic.sync_folder(new.target.parent)


def _meanwhile(name: str, what: str) -> ChangedMeanwhile:
    return ChangedMeanwhile(
        f"{name} was {what} by somebody else while it was slimmed: it stays as it is now",
        hint="slim it again",
    )


@contextmanager
def _only_publisher(source: OpenFile) -> Iterator[None]:
    """Hold the source's lock: of two processes that slim one file, the second sees what the first did."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(source.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Untouched(f"{source.name} is locked by another program") from None
            time.sleep(0.01)
        except OSError:  # a file system without locks
            break
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(source.descriptor, fcntl.LOCK_UN)


def write_pieces(source: OpenFile, pieces: Iterable[Copy | Literal], descriptor: int, size: int) -> None:
    """Write `pieces` of the source to an empty file, which gets `size` bytes; between them it is zero.

    Holes of a sparse source are holes. Raises `InputError` where the source became shorter, and `OSError`.
    """
    with suppress(OSError):  # from here on it is read in order
        os.posix_fadvise(source.descriptor, 0, 0, os.POSIX_FADV_NORMAL)
    os.truncate(descriptor, size)
    for piece in pieces:
        if isinstance(piece, Copy):
            for offset, length in _written_ranges(source, piece.offset, piece.offset + piece.length):
                _copy(source.descriptor, offset, descriptor, piece.to + offset - piece.offset, length)
        else:
            os.pwrite(descriptor, piece.data, piece.to)


def _copy(source: int, offset: int, target: int, to: int, length: int) -> None:
    while length > 0:
        done = _copy_some(source, offset, target, to, length)
        if not done:
            raise InputError(f"the file became shorter while it was read, at offset {offset:#x}")
        offset, to, length = offset + done, to + done, length - done


def _copy_some(source: int, offset: int, target: int, to: int, length: int) -> int:
    """Copy up to `length` bytes, inside the kernel where that is possible; returns how many."""
    if length >= _BLOCK:
        with suppress(OSError):  # not between these file systems, or not on this kernel
            if done := os.copy_file_range(source, target, min(length, _STEP), offset, to):
                return done
    return os.pwrite(target, os.pread(source, min(length, _BLOCK), offset), to)


def same_metadata(source: OpenFile, target: int, *, elsewhere: bool) -> None:
    """Owner where permitted, mode, extended attributes (ACLs are some), and times to the nanosecond.

    Raises `Untouched` when an attribute cannot be kept. `elsewhere`: in another folder, whose own
    SELinux label serves as well, and on a file system that may have no attributes for users.
    """
    status, mode = source.status, stat.S_IMODE(source.status.st_mode)
    try:
        os.fchown(target, status.st_uid, status.st_gid)
    except PermissionError:  # a program that runs as its owner must not run as somebody else
        mode &= ~(stat.S_ISUID | stat.S_ISGID)
    os.fchmod(target, mode)
    _same_attributes(source, target, elsewhere)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _same_attributes(source: OpenFile, target: int, elsewhere: bool) -> None:
    try:
        names = os.listxattr(source.descriptor)
    except OSError:  # a file system without extended attributes
        return
    for name in names:
        try:
            value = os.getxattr(source.descriptor, name)
            if _attribute(target, name) != value:
                os.setxattr(target, name, value)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if error.errno == errno.ENODATA:  # removed meanwhile
                continue
            if elsewhere and (name == "security.selinux" or name.startswith("user.")):
                continue
            raise Untouched(
                f"{source.name} stays as it is: its extended attribute {name} could not be kept"
                f" ({error.strerror})"
            ) from error


def _attribute(descriptor: int, name: str) -> bytes | None:
    try:
        return os.getxattr(descriptor, name)
    except OSError:
        return None
