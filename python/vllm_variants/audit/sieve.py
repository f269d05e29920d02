"""A library that goes by once, from its first byte to its last: what of it an audit needs is kept.

The section table, which says where fat binaries are, stands at a library's end. So fat binaries are looked
for everywhere, by their magic, while the bytes go by: their headers stay, their payloads go. After that
`summarise` reads what stayed as it reads a file, and finds by the section table which of them count. Whatever
it asks for that did not stay is a problem of the library, never nothing.

Memory: the headers, `_HEAD` and `_TAIL` bytes of the file, and one payload at a time.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import IO

from vllm_variants.audit import features
from vllm_variants.audit.summary import FeatureReader, LibrarySummary, summarise
from vllm_variants.fatbin.container import IMAGE_HEADER, MAGIC, Container, container_at
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.source import Malformed, Source
from vllm_variants.fatbin.stub import LARGEST as LARGEST_STUB
from vllm_variants.fatbin.stub import is_stub

IN_MEMORY = 1 << 25
"""Bytes up to which a library is simply read into memory."""
_CHUNK = 1 << 20
_HEAD, _TAIL = 1 << 20, 1 << 25
_PAYLOADS = 1 << 26
"""Bytes of a container's payloads kept until it has gone by, for its kernels' names."""
_SIZES = struct.Struct("<HHIQ")


class NotKept(Malformed):
    """Bytes that did not stay: the library is laid out in a way that one pass cannot read."""

    def __init__(self, name: str, offset: int) -> None:
        super().__init__(name, offset, "headers where they are not looked for when a file is read once")


def summarise_stream(stream: IO[bytes], size: int, name: str, path: str) -> LibrarySummary | None:
    """A library of `size` bytes as it comes out of a stream; None when it is no ELF64 file.

    `path` is where it lies in what is audited, `name` says so for errors. Raises what reading the stream
    raises; a stream that ends early is the library's `problem`.
    """
    reader = features.by_kernels(path)
    if size <= IN_MEMORY:
        data = stream.read(size)
        if len(data) != size:
            return LibrarySummary(path, size, problem=f"{name}: it ends after {len(data)} of {size} bytes")
        return summarise(Bytes(name, data), path, reader)
    sieve = Sieve(stream, size, name, reader)
    try:
        sieve.run()
    except EOFError:
        return LibrarySummary(path, size, problem=f"{name}: it ends after {sieve.end} of {size} bytes")
    return summarise(sieve, path, sieve.features_of if reader else None)


class _Window:
    """A stream's bytes from `base` to `end`; the first and the last of all are kept aside."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self.base = 0
        self.head, self.tail = bytearray(), bytearray()
        self._stream, self._buffer = stream, bytearray()

    @property
    def end(self) -> int:
        """How far the stream was read, in bytes."""
        return self.base + len(self._buffer)

    def fill(self, end: int) -> None:
        """Read on to at least `end`; raise `EOFError` when the stream ends before."""
        while self.end < end:
            data = self._stream.read(min(_CHUNK, end - self.end))
            if not data:
                raise EOFError
            if len(self.head) < _HEAD:
                self.head += data
            self.tail += data
            if len(self.tail) > 2 * _TAIL:
                del self.tail[:-_TAIL]
            self._buffer += data

    def drop(self, before: int) -> None:
        """Let go of what is before an offset, reading on to there."""
        while self.end < before:
            self.base = self.end
            self._buffer.clear()
            self.fill(min(before, self.end + _CHUNK))
        del self._buffer[: max(0, before - self.base)]
        self.base = max(self.base, before)

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; raise `NotKept` where they were dropped."""
        if offset < self.base:
            raise NotKept(self.name, offset)
        self.fill(offset + length)
        return bytes(self._buffer[offset - self.base : offset - self.base + length])

    def find(self, pattern: bytes, start: int) -> int:
        """The offset of `pattern` from `start` on in what is here, else -1."""
        found = self._buffer.find(pattern, start - self.base)
        return found + self.base if found >= 0 else -1

    def nonzero(self, start: int) -> int:
        """The offset of the first byte that is not zero from `start` on in what is here, else `end`."""
        rest = self._buffer[start - self.base :].lstrip(b"\0")
        return self.end - len(rest)


class Sieve:
    """Reads a library once and keeps what an audit needs of it; then it is the library's `Source`."""

    def __init__(self, stream: IO[bytes], size: int, name: str, reader: FeatureReader | None) -> None:
        self.name, self.size = name, size
        self._window, self._reader = _Window(stream, name), reader
        self._kept: dict[int, bytearray] = {}
        self._last = 0  # where the interval that was kept last begins
        self._starts: list[int] = []
        self._zeros: list[tuple[int, int]] = []
        self._found: list[int] = []
        self._features: dict[int, tuple[str, ...]] = {}

    @property
    def end(self) -> int:
        """How far the stream was read, in bytes."""
        return self._window.end

    def run(self) -> None:
        """Read the stream to its end; raise `EOFError` when that comes before `size` bytes."""
        at, overlap = 0, len(MAGIC) - 1
        while at < self.size:
            self._window.drop(at)
            self._window.fill(min(self.size, at + _CHUNK + overlap))
            found = self._window.find(MAGIC, at)
            if found >= 0:
                at = self._container(found)
            else:
                at = self.size if self.end >= self.size else self.end - overlap
        self._window.drop(self.end)
        self._starts = sorted(self._kept)

    def _container(self, at: int) -> int:
        """Keep the headers of the container at `at`, if it is one; where to look on."""
        self._window.drop(at)
        self._found.append(at)
        try:
            container = container_at(_Headers(self), at, self.size)
        except Malformed:
            self._keep(at, min(IMAGE_HEADER.size, self.size - at))
            return max(at + len(MAGIC), self._window.base)
        if self._reader:
            self._features[at] = self._features_of(self._reader, container)
        return self._note_zeros(container.end)

    def _features_of(self, reader: FeatureReader, container: Container) -> tuple[str, ...]:
        passing = _Passing(self)
        try:
            stubs = frozenset(n for n, image in enumerate(container.images) if is_stub(passing, image))
        except NotKept:
            return ()  # it is larger than what is kept of a container: without names it is the library's
        return reader(passing, container, stubs)

    def header(self, at: int, length: int) -> bytes:
        """A header of the container that goes by, which is kept; with the payload, where that is a stub's."""
        if at + length > self.size:
            raise Malformed(self.name, at, f"{length} bytes are missing: the file ends at {self.size:#x}")
        if at - self._window.base > _PAYLOADS:
            self._window.drop(at)
        data = self._keep(at, length)
        if length == IMAGE_HEADER.size:
            _, _, header_size, payload = _SIZES.unpack_from(data)
            if length <= header_size and payload <= LARGEST_STUB and at + header_size + payload <= self.size:
                self._keep(at + length, header_size + payload - length)
        return data

    def _keep(self, at: int, length: int) -> bytes:
        start = self._kept.get(self._last, b"")
        if self._last <= at and at + length <= self._last + len(start):
            return bytes(start[at - self._last : at - self._last + length])
        data = self._window.at(at, length)
        if start and at == self._last + len(start):
            self._kept[self._last] += data
        else:
            self._last = at
            self._kept[at] = bytearray(data)
        return data

    def _note_zeros(self, start: int) -> int:
        """Remember how far there are zeros from `start` on; the offset behind them."""
        at, step = start, 64
        while at < self.size:
            self._window.drop(at)
            self._window.fill(min(self.size, at + step))
            at = self._window.nonzero(at)
            if at < self.end:
                break
            step = _CHUNK
        self._zeros.append((start, at))
        return at

    # ── as a source ──

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raise `Malformed` where there are fewer, `NotKept` where they are gone."""
        if min(offset, length) < 0 or offset + length > self.size:
            raise Malformed(self.name, offset, f"{length} bytes are missing: the file ends at {self.size:#x}")
        if offset + length <= len(self._window.head):
            return bytes(self._window.head[offset : offset + length])
        into = offset - (self.end - len(self._window.tail))
        if into >= 0:
            return bytes(self._window.tail[into : into + length])
        start = self._starts[bisect_right(self._starts, offset) - 1] if self._starts else 0
        data = self._kept.get(start, b"")[offset - start : offset - start + length]
        if offset < start or len(data) != length:
            raise NotKept(self.name, offset)
        return bytes(data)

    def occurrences(self, pattern: bytes, start: int, end: int) -> Iterator[int]:
        """The containers that were found between two offsets; nothing else was looked for."""
        if pattern != MAGIC:
            raise NotKept(self.name, start)
        yield from (at for at in self._found if start <= at < end)

    def next_written(self, start: int, end: int) -> int:
        """The next offset from `start` on that is not known to be zero, at most `end`."""
        after = bisect_right(self._zeros, (start, self.size)) - 1
        if after >= 0 and self._zeros[after][0] <= start < self._zeros[after][1]:
            return min(end, self._zeros[after][1])
        return start

    def features_of(self, source: Source, container: Container, stubs: frozenset[int]) -> tuple[str, ...]:
        """The features that were read of a container when it went by."""
        return self._features.get(container.offset, ())


class _Headers:
    """The headers of the container that goes by, as a source."""

    def __init__(self, sieve: Sieve) -> None:
        self.name, self.size = sieve.name, sieve.size
        self._sieve = sieve

    def at(self, offset: int, length: int) -> bytes:
        """Bytes that are headers; they are kept."""
        return self._sieve.header(offset, length)


class _Passing:
    """All bytes of the container that goes by which are still here, as a source."""

    def __init__(self, sieve: Sieve) -> None:
        self.name, self.size = sieve.name, sieve.size
        self._window = sieve._window

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of it; raise `NotKept` where it is so large that they were dropped."""
        return self._window.at(offset, length)
