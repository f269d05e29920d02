"""Where bytes come from: a file on disk or a member of a wheel, behind one small protocol.

Both serve any range of a file without holding the file: a file is read where it is asked for, a
wheel's member is decompressed as it goes by. So memory does not grow with the file. A file that
somebody shortens meanwhile gives `Malformed`, where a memory mapping would give SIGBUS.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from vllm_variants.errors import InputError

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it; zipfile then refuses such members by itself

    class LZMAError(Exception):  # type: ignore[no-redef]
        """Never raised."""


UNREADABLE = (
    zipfile.BadZipFile, zlib.error, LZMAError, OSError, EOFError, ValueError, struct.error,
    RuntimeError,  # encrypted, or (NotImplementedError) compressed in a way that zipfile does not know
)  # fmt: skip
"""What `zipfile` raises for members that are damaged, encrypted or odd."""
_SCAN = 1 << 20
"""Bytes looked at in one step of a search."""
_LARGEST_DICTIONARY = 1 << 26
"""Bytes, of LZMA: what `xz -9` uses."""
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


@runtime_checkable
class Searched(Protocol):
    """A source that was searched while it went by, and keeps what was found rather than all bytes."""

    def occurrences(self, pattern: bytes, start: int, end: int) -> Iterator[int]:
        """The offsets of `pattern` between `start` and `end`."""

    def next_written(self, start: int, end: int) -> int:
        """The next offset from `start` on that is not known to be zero, at most `end`."""


class OpenFile:
    """An open file, read by offset. `opened` opens one. `status` is what it was when it was opened."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.status = os.fstat(descriptor)
        self.size = self.status.st_size

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raise `Malformed` where the file has fewer."""
        if min(offset, length) >= 0 and offset + length <= self.size:
            data = self._read(offset, length)
            while 0 < len(data) < length and (more := self._read(offset + len(data), length - len(data))):
                data += more  # the kernel reads 2 GiB at most
            if len(data) == length:
                return data
        raise Malformed(self.name, offset, f"{length} bytes are missing: the file ends at {self.size:#x}")

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise Malformed(self.name, offset, f"cannot be read ({error.strerror})") from error


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    """Open a regular file for reading; raise `InputError` for anything else, `OSError` where it cannot be."""
    descriptor = open_regular(path)
    try:
        with suppress(OSError):  # headers lie far apart: do not read the code between them ahead
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield OpenFile(str(path), descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path | str) -> int:
    """A descriptor to read a regular file; never waits for a FIFO's writer, never touches a device.

    Raises `InputError` for what is no regular file, `OSError` where it cannot be opened.
    """
    _refuse_other_types(path, os.stat(path).st_mode)  # noqa: PTH116 - thousands of them
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_other_types(path, os.fstat(descriptor).st_mode)  # it may have been replaced since
    except InputError:
        os.close(descriptor)
        raise
    return descriptor


_TYPES = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def _refuse_other_types(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is {_TYPES.get(stat.S_IFMT(mode), 'special')}, not a regular file")


class WheelMember:
    """A member of a zip file, decompressed as it is read; going back starts over."""

    def __init__(self, wheel: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self.name = f"{wheel.filename}!{member.filename}"
        self.size = member.file_size
        self._wheel, self._member = wheel, member
        self._stream: IO[bytes] = self._opened()
        self._window: tuple[int, bytes] = (0, b"")  # ends where the stream stands

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raise `Malformed` where the member has fewer or cannot be decompressed."""
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

    def _opened(self) -> IO[bytes]:
        try:
            stream = self._wheel.open(self._member)
            if self._member.compress_type == zipfile.ZIP_LZMA:
                stream = self._modest(stream)
            return stream
        except UNREADABLE as error:
            raise Malformed(self.name, 0, f"cannot be read ({error})") from error

    def _modest(self, stream: IO[bytes]) -> IO[bytes]:
        """`stream` again from its start, unless LZMA would take more memory than the file is worth.

        The member begins with two numbers of two bytes, LZMA's version and the length of its properties,
        then one byte and the size of its dictionary (APPNOTE.TXT 5.8.8), which is allocated at once.
        """
        raw = self._wheel.fp
        assert raw is not None
        with stream:  # its header was read: the data begins where the archive's file now stands
            at = raw.tell()
            dictionary = int.from_bytes(raw.read(9)[5:], "little")
            raw.seek(at)
        if dictionary > _LARGEST_DICTIONARY:
            raise Malformed(self.name, 0, f"an LZMA dictionary of {dictionary} bytes")
        return self._wheel.open(self._member)

    def _seek(self, offset: int) -> None:
        if offset < self._stream.tell():
            self._stream.close()
            self._stream = self._opened()
        while (gap := offset - self._stream.tell()) > 0:
            self._read(min(gap, _SCAN))

    def _read(self, length: int) -> bytes:
        at = self._stream.tell()
        try:
            data = self._stream.read(length)
        except UNREADABLE as error:
            raise Malformed(self.name, at, f"cannot be decompressed ({error})") from error
        if len(data) != length:
            raise Malformed(self.name, at, "the wheel's member ends early")
        return data

    def close(self) -> None:
        """Close the member's stream."""
        self._stream.close()


def find_all(source: Source, pattern: bytes, start: int, end: int) -> Iterator[int]:
    """The offset of every occurrence of `pattern`, which does not begin with zero, in `source[start:end]`."""
    if isinstance(source, Searched):
        yield from source.occurrences(pattern, start, end)
        return
    overlap, at = len(pattern) - 1, start
    while (at := _next_written(source, at, end)) < end:
        window = source.at(at, min(_SCAN + overlap, end - at))
        found = window.find(pattern)
        while found >= 0:
            yield at + found
            found = window.find(pattern, found + 1)
        at += _SCAN


def same_bytes(one: Source, at: int, other: Source, other_at: int, length: int) -> bool:
    """Whether two ranges of `length` bytes are equal, read piece by piece; `Malformed` where one ends."""
    steps = ((done, min(_SCAN, length - done)) for done in range(0, length, _SCAN))
    return all(one.at(at + done, size) == other.at(other_at + done, size) for done, size in steps)


def next_nonzero(source: Source, start: int, end: int) -> int:
    """The offset of the first byte that is not zero in `source[start:end]`, else `end`."""
    step = 64
    while (start := _next_written(source, start, end)) < end:
        window = source.at(start, min(step, end - start))
        rest = window.lstrip(b"\0")
        if rest:
            return start + len(window) - len(rest)
        start, step = start + len(window), min(step * 8, _SCAN)
    return end


def _next_written(source: Source, start: int, end: int) -> int:
    """The next offset from `start` on that is in no hole of a sparse file, at most `end`."""
    if not isinstance(source, OpenFile):
        return source.next_written(start, end) if isinstance(source, Searched) else start
    if end - start < _SCAN:
        return start
    try:
        return min(end, os.lseek(source.descriptor, start, os.SEEK_DATA))
    except OSError as error:
        return end if error.errno == errno.ENXIO else start
