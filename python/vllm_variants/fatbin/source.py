"""Where bytes come from: a mapped file or a member of a wheel, behind one small protocol.

Both serve any range of a file without holding the file: a mapping touches only the pages that are
asked for, a wheel's member is decompressed as it goes by. So memory does not grow with the file.
"""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from vllm_variants.errors import InputError

_SCAN = 1 << 20
"""Bytes looked at in one step of a search."""
_BULK = 1 << 16
"""Bytes from which a range is read instead of mapped: a header is small, code is large."""
_READS_BEFORE_RELEASE = 1024
"""Each read may map a page or, where the page cache has large folios, up to 64 KiB of them; letting
go of all of them now and then keeps a process small. They stay in the page cache."""
_WINDOW = 1 << 14
"""Bytes read at least from a wheel's member: the next header is often near."""


class Malformed(InputError):
    """A file's headers contradict themselves or the file: says which file, what, and where."""

    def __init__(self, name: str, offset: int, what: str) -> None:
        super().__init__(f"{name}: {what}, at offset {offset:#x}")
        self.offset = offset


class Source(Protocol):
    """A file's bytes by offset."""

    @property
    def name(self) -> str:
        """For people and for errors: a path, or `wheel!member`."""

    @property
    def size(self) -> int:
        """In bytes."""

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raise `Malformed` where the file has fewer."""


class MappedFile:
    """A file, memory-mapped. Use `mapped` to open one."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) if self.size else None
        self._reads = 0
        if self._map:  # headers lie far apart: do not read the code between them
            self._map.madvise(mmap.MADV_RANDOM)

    def at(self, offset: int, length: int) -> bytes:
        if not self._map or offset < 0 or length < 0 or offset + length > self.size:
            raise Malformed(self.name, offset, f"{length} bytes are missing: the file ends at {self.size:#x}")
        if length >= _BULK:
            return os.pread(self.descriptor, length, offset)
        self._reads += 1
        if self._reads % _READS_BEFORE_RELEASE == 0:
            self._map.madvise(mmap.MADV_DONTNEED)
        return self._map[offset : offset + length]

    def close(self) -> None:
        if self._map:
            self._map.close()


@contextmanager
def mapped(path: Path) -> Iterator[MappedFile]:
    """Map a file for reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = MappedFile(str(path), descriptor)
        try:
            yield source
        finally:
            source.close()
    finally:
        os.close(descriptor)


class WheelMember:
    """A member of a zip file, decompressed as it is read; going back starts over."""

    def __init__(self, wheel: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self.name = f"{wheel.filename}!{member.filename}"
        self.size = member.file_size
        self._wheel, self._member = wheel, member
        self._stream: IO[bytes] = wheel.open(member)
        self._window: tuple[int, bytes] = (0, b"")  # ends where the stream stands

    def at(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Malformed(self.name, offset, f"{length} bytes are missing: the file ends at {self.size:#x}")
        start, window = self._window
        if not start <= offset <= start + len(window):
            self._seek(offset)
            start, window = offset, b""
        window = window[offset - start :]
        if length > len(window):
            more = max(length - len(window), _WINDOW)
            window += self._read(min(more, self.size - offset - len(window)))
        self._window = offset, window
        return window[:length]

    def _seek(self, offset: int) -> None:
        if offset < self._stream.tell():
            self._stream.close()
            self._stream = self._wheel.open(self._member)
        while (gap := offset - self._stream.tell()) > 0:
            self._read(min(gap, _SCAN))

    def _read(self, length: int) -> bytes:
        at = self._stream.tell()
        try:
            data = self._stream.read(length)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise Malformed(self.name, at, f"cannot be decompressed ({error})") from error
        if len(data) != length:
            raise Malformed(self.name, at, "the wheel's member ends early")
        return data

    def close(self) -> None:
        self._stream.close()


def find_all(source: Source, pattern: bytes, start: int, end: int) -> Iterator[int]:
    """The offset of every occurrence of `pattern` in `source[start:end]`."""
    overlap = len(pattern) - 1
    for at in range(start, end, _SCAN):
        window = source.at(at, min(_SCAN + overlap, end - at))
        found = window.find(pattern)
        while found >= 0:
            yield at + found
            found = window.find(pattern, found + 1)


def next_nonzero(source: Source, start: int, end: int) -> int:
    """The offset of the first byte that is not zero in `source[start:end]`, else `end`."""
    step = 64
    while start < end:
        window = source.at(start, min(step, end - start))
        rest = window.lstrip(b"\0")
        if rest:
            return start + len(window) - len(rest)
        start, step = start + len(window), min(step * 8, _SCAN)
    return end
