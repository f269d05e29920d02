"""A range of an open file: a stream of its own, and a source of bytes by offset."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vllm_variants.fatbin.source import Malformed
from vllm_variants.system.positioned import Positioned


class FileRange(Positioned):
    """`size` bytes of a file from `offset` on, read with `pread`: ranges of one file do not disturb."""

    def __init__(self, descriptor: int, offset: int, size: int, name: str = "") -> None:
        super().__init__()
        self.descriptor, self.offset, self.size, self.name = descriptor, offset, size, name

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Read on into a buffer."""
        wanted = min(len(buffer), max(0, self.size - self._position))
        data = os.pread(self.descriptor, wanted, self.offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def peek(self, count: int = 8) -> bytes:
        """The first bytes, without moving."""
        return os.pread(self.descriptor, min(count, self.size), self.offset)

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raise `Malformed` where the range has fewer."""
        if min(offset, length) >= 0 and offset + length <= self.size:
            data = os.pread(self.descriptor, length, self.offset + offset)
            if len(data) == length:
                return data
        raise Malformed(self.name, offset, f"{length} bytes are missing: it ends at {self.size:#x}")


@dataclass(frozen=True)
class Blob:
    """A range of a file that is open; `name` says for errors where it is."""

    name: str
    descriptor: int
    offset: int
    size: int

    def opened(self) -> FileRange:
        """A stream of its bytes, which can also be read at any offset."""
        return FileRange(self.descriptor, self.offset, self.size)
