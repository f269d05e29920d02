"""Slim one library to given devices.

It is written aside, verified, and renamed over the old name: it is either old or new at any
moment, and what shares its inode (a package cache's hard link) keeps the old bytes. It is renamed
only over the very file that was read: a library that somebody replaced meanwhile stays theirs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from vllm_variants.errors import Error, InputError, ResourceError, UsageError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import layout
from vllm_variants.fatbin.proof import verify
from vllm_variants.fatbin.rewrite import (
    Copy,
    Rewrite,
    containers_in,
    device_sections,
    pieces,
    resource_rewrites,
    resource_sections,
    rewrites,
)
from vllm_variants.fatbin.source import OpenFile, opened
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model.capability import Capability, choose
from vllm_variants.system import atomic

SMALLEST_HOLE = 0x10000
"""Bytes; a smaller hole saves less than its segment costs at load time."""
MOST_HOLES = 4000
"""Program headers are counted in 16 bits, and glibc keeps them on the stack while loading."""
_BLOCK = 1 << 16
"""Bytes; shorter ranges are read and written."""
_STEP = 1 << 26
"""Bytes that the kernel copies in one go, so that a signal is heard soon."""
_PATIENCE = 10.0
"""Seconds to wait for another process that publishes a slimmed version of the same file."""


_SIGNATURES = {"security.ima", "security.evm"}


class Untouched(Error):
    """A library stays as it is for a reason outside it: somebody replaced it, or it cannot be read."""


class Unwritable(ResourceError):
    """The new file cannot be written where it must be; the old one stays."""


@dataclass(frozen=True)
class FileReport:
    """What slimming did to one file; sizes in bytes. `kept` says why a file was left as it was.

    `failed`: something outside the library stood in the way, so that another run may succeed.
    `unserved` has the devices for which nothing in the file runs, not even PTX.
    """

    path: str
    before: int
    after: int
    containers: int = 0
    stubs: int = 0
    dropped_images: int = 0
    kept: str = ""
    failed: bool = False
    unserved: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return not self.kept

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Options(TypedDict):
    """How `slim_file` works, as one value."""

    keep_ptx: bool
    resources: bool
    durable: bool


def slim_file(
    path: Path,
    devices: Sequence[Capability],
    *,
    to: Path | None = None,
    keep_ptx: bool = False,
    resources: bool = True,
    durable: bool = True,
) -> FileReport:
    """Slim one shared library for `devices`, in place or `to` another path, which must not exist.

    In place, a file with nothing to drop is not touched; `to` another path, nothing is written then.
    `resources`: also stub what no device can run in the sections that mix containers and tables
    (docs/slim.md has the proof). `durable`: the new file is on the disk before it is renamed.
    Raises `Malformed`, `Wrong` (the proof failed), `Untouched` (replaced meanwhile, unreadable),
    `Unwritable` or `ResourceError` (no room); the old file is whole then.
    """
    target = to or path.resolve()
    with reading(path) as source:
        before = source.size
        elf = elfs.parse(source) if elfs.is_elf64(source) else None
        if refusal := _refusal(source, elf):
            return FileReport(str(path), before, before, kept=refusal)
        assert elf
        unserved = _unserved(source, elf, devices)
        changes = _changes(source, elf, devices, keep_ptx, resources)
        holes = layout.holes_in(elf, [change.dead for change in changes], SMALLEST_HOLE, MOST_HOLES)
        if not holes:
            return FileReport(str(path), before, before, kept="nothing to drop", unserved=unserved)
        with _writing(target), atomic.new_file(target) as new:
            after = _write(source, elf, changes, holes, new.descriptor)
            _same_metadata(source, new.descriptor, elsewhere=bool(to))
            verify(source, OpenFile(str(target), new.descriptor), changes)
            _publish(source, new, replaces=not to, durable=durable)
    return FileReport(
        str(path), before, after, len(changes), sum(1 for c in changes if c.stub),
        sum(len(c.container.images) - max(len(c.images), 1 if c.stub else 0) for c in changes),
        unserved=unserved,
    )  # fmt: skip


def copy_file(path: Path, to: Path | None = None, *, durable: bool = True) -> None:
    """Copy a file with all its metadata `to` a path that must not exist, whole or not at all.

    Without `to`, the copy replaces the file: its name gets an inode of its own. Raises `Untouched`,
    `Unwritable` or `ResourceError` (no room).
    """
    target = to or path
    with reading(path) as source, _writing(target), atomic.new_file(target) as new:
        os.truncate(new.descriptor, source.size)
        _copy(source.descriptor, 0, new.descriptor, 0, source.size)
        _same_metadata(source, new.descriptor, elsewhere=bool(to))
        _publish(source, new, replaces=not to, durable=durable)


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
def _writing(target: Path) -> Iterator[None]:
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


def _publish(source: OpenFile, new: atomic.NewFile, *, replaces: bool, durable: bool) -> None:
    """Rename the new file to its target: over the source if it `replaces` it, else over nothing.

    Raises `Untouched` when the source is not what it was, or not where it was.
    """
    if durable:
        os.fsync(new.descriptor)  # takes long: before the lock
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
        new.publish(durable=durable)


def _meanwhile(name: str, what: str) -> Untouched:
    return Untouched(
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


def _refusal(source: OpenFile, elf: elfs.Elf | None) -> str:
    """Why a file must stay as it is; empty: it need not."""
    if not elf:
        return "no ELF64 library"
    if not device_sections(elf):
        return "no device code"
    if elf.type == elfs.ET_REL:
        return "an object file: nvprune slims those"
    if any(load.align & (load.align - 1) for load in elf.loads):
        return "a segment's alignment is no power of two"
    if extra := elfs.appended(source, elf):
        return f"signed, or with other data appended: {extra} bytes behind its last section"
    with suppress(OSError):  # file systems without extended attributes
        if not _SIGNATURES.isdisjoint(os.listxattr(source.descriptor)):
            return "signed: the kernel would refuse it changed"
    return ""


def _unserved(source: OpenFile, elf: elfs.Elf, devices: Sequence[Capability]) -> tuple[str, ...]:
    """The devices for which no image in the device sections runs; mostly known after one container."""
    left = list(dict.fromkeys(devices))
    for section in device_sections(elf):
        for container in containers_in(source, section):
            if not all(image.known for image in container.images):
                return ()  # who knows
            code = [image for image in container.images if not is_stub(source, image)]
            images = [(kind, image.target) for image in code if (kind := image.kind)]
            left = [device for device in left if choose(images, device) is None]
            if not left:
                return ()
    return tuple(device.sm for device in left)


def _changes(
    source: OpenFile, elf: elfs.Elf, devices: Sequence[Capability], keep_ptx: bool, resources: bool
) -> list[Rewrite]:
    """The containers that lose images, by offset."""
    changes = [c for s in device_sections(elf) for c in rewrites(source, s, devices, keep_ptx)]
    if resources:
        for section in resource_sections(elf):
            changes += resource_rewrites(source, section, devices, keep_ptx)
    return sorted(changes, key=lambda change: change.container.offset)


def _write(
    source: OpenFile,
    elf: elfs.Elf,
    changes: Sequence[Rewrite],
    holes: Sequence[layout.Hole],
    descriptor: int,
) -> int:
    new = layout.lay_out(elf, source.at(0, elfs.HEADER.size), holes)
    with suppress(OSError):  # from here on it is read in order
        os.posix_fadvise(source.descriptor, 0, 0, os.POSIX_FADV_NORMAL)
    os.truncate(descriptor, new.size)
    for piece in pieces(source, elfs.content_end(elf), changes, layout.Shift(holes), new):
        if isinstance(piece, Copy):
            _copy(source.descriptor, piece.offset, descriptor, piece.to, piece.length)
        else:
            os.pwrite(descriptor, piece.data, piece.to)
    return new.size


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


def _same_metadata(source: OpenFile, target: int, *, elsewhere: bool) -> None:
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
