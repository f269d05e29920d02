"""Slim one library to given devices.

It is written aside, verified, and renamed over the old name: it is either old or new at any
moment, and what shares its inode (a package cache's hard link) keeps the old bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_variants.capability import Capability
from vllm_variants.errors import InputError, ResourceError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import layout
from vllm_variants.fatbin.rewrite import (
    Copy,
    Rewrite,
    device_sections,
    pieces,
    resource_rewrites,
    resource_sections,
    rewrites,
)
from vllm_variants.fatbin.source import MappedFile, mapped
from vllm_variants.fatbin.verify import verify

SMALLEST_HOLE = 0x10000
"""Bytes; a smaller hole saves less than its segment costs at load time."""
MOST_HOLES = 4000
"""Program headers are counted in 16 bits, and glibc keeps them on the stack while loading."""
_BLOCK = 1 << 16
"""Bytes; shorter ranges are read and written."""


@dataclass(frozen=True)
class FileReport:
    """What slimming did to one file; sizes in bytes. `kept` says why a file was left as it was."""

    path: str
    before: int
    after: int
    containers: int = 0
    stubs: int = 0
    dropped_images: int = 0
    kept: str = ""

    @property
    def changed(self) -> bool:
        return not self.kept

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def slim_file(
    path: Path,
    devices: Sequence[Capability],
    *,
    to: Path | None = None,
    keep_ptx: bool = False,
    resources: bool = True,
) -> FileReport:
    """Slim one shared library for `devices`, in place or `to` another path.

    In place, a file with nothing to drop is not touched; `to` another path, nothing is written then.
    `resources`: also stub what no device can run in the sections that mix containers and tables
    (docs/slim.md has the proof). Raises `Malformed`, `Wrong` (the proof failed) or `ResourceError`
    (no room); the old file is whole then.
    """
    with mapped(path) as source:
        before = source.size
        elf = elfs.parse(source) if elfs.is_elf64(source) else None
        if refusal := _refusal(source, elf):
            return FileReport(str(path), before, before, kept=refusal)
        assert elf
        changes = _changes(source, elf, devices, keep_ptx, resources)
        holes = layout.holes_in(elf, [change.dead for change in changes], SMALLEST_HOLE, MOST_HOLES)
        if not holes:
            return FileReport(str(path), before, before, kept="nothing to drop")
        with aside(to or path) as (descriptor, new):
            after = _write(source, elf, changes, holes, descriptor)
            _same_metadata(source.descriptor, descriptor)
            verify(source, new, changes)
            new.replace(to or path)
    return FileReport(
        str(path), before, after, len(changes), sum(1 for c in changes if c.stub),
        sum(len(c.container.images) - max(len(c.images), 1 if c.stub else 0) for c in changes),
    )  # fmt: skip


def _refusal(source: MappedFile, elf: elfs.Elf | None) -> str:
    """Why a file must stay as it is; empty: it need not."""
    if not elf:
        return "no ELF64 library"
    if not device_sections(elf):
        return "no device code"
    if elf.type == elfs.ET_REL:
        return "an object file: nvprune slims those"
    if extra := elfs.appended(source, elf):
        return f"signed, or with other data appended: {extra} bytes behind its last section"
    with suppress(OSError):  # file systems without extended attributes
        if "security.ima" in os.listxattr(source.descriptor):
            return "signed: the kernel would refuse it changed"
    return ""


def _changes(
    source: MappedFile, elf: elfs.Elf, devices: Sequence[Capability], keep_ptx: bool, resources: bool
) -> list[Rewrite]:
    """The containers that lose images, by offset."""
    changes = [c for s in device_sections(elf) for c in rewrites(source, s, devices, keep_ptx)]
    if resources:
        changes += [c for s in resource_sections(elf) for c in resource_rewrites(source, s, devices)]
    return sorted(changes, key=lambda change: change.container.offset)


def _write(
    source: MappedFile,
    elf: elfs.Elf,
    changes: Sequence[Rewrite],
    holes: Sequence[layout.Hole],
    descriptor: int,
) -> int:
    new = layout.lay_out(elf, source.at(0, elfs.HEADER.size), holes)
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
            if done := os.copy_file_range(source, target, length, offset, to):
                return done
    return os.pwrite(target, os.pread(source, min(length, _BLOCK), offset), to)


@contextmanager
def aside(path: Path) -> Iterator[tuple[int, Path]]:
    """A file beside `path` to write into; it is gone afterwards unless it was renamed."""
    beside = path.with_name(f".{path.name}.slimming")
    beside.unlink(missing_ok=True)  # left by a run that was killed
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor, beside
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"no room to write the slimmed {path}", mend="free some space and try again"
        ) from error
    finally:
        os.close(descriptor)
        beside.unlink(missing_ok=True)


def _same_metadata(source: int, target: int) -> None:
    """Mode, owner where permitted, and times to the nanosecond."""
    status = os.fstat(source)
    with suppress(PermissionError):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
