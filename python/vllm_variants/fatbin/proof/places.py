"""Where things are in a file and in memory, and whether bytes are equal: for every part of the proof."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain

from vllm_variants.errors import AuditError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Elf
from vllm_variants.fatbin.source import OpenFile

_BLOCK = 1 << 18


class Wrong(AuditError):
    """The new file is not what it must be; the old one was not replaced."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"{name}: slimming would have broken it: {what}", hint="report this library; it was kept"
        )


class Addresses:
    """Where a loader puts a file's bytes. Found by bisection: a slimmed library has thousands of segments."""

    def __init__(self, name: str, elf: Elf) -> None:
        self._name = name
        self._loads = sorted((s for s in elf.loads if s.file_size), key=lambda load: load.offset)
        self._starts = [load.offset for load in self._loads]

    def __call__(self, offset: int, size: int = 1) -> int:
        """The address of the bytes at an offset; raise `Wrong` where no segment has all of them."""
        last = bisect_right(self._starts, offset)
        for load in chain(self._loads[max(last - 1, 0) : last], self._loads):
            if load.offset <= offset and offset + size <= load.end:
                return load.address + offset - load.offset
        raise Wrong(self._name, f"no segment has all {size} bytes at offset {offset:#x}")


def file_ranges(name: str, elf: Elf, address: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file has the bytes of `[address, end)`: (offset, length), in order."""
    for load in elf.loads:
        start, stop = max(address, load.address), min(end, load.address + load.file_size)
        if start < stop:
            if start != address:
                break
            yield load.offset + start - load.address, stop - start
            address = stop
    if address != end:
        raise Wrong(name, f"address {address:#x} had no bytes before")


def is_loaded(elf: Elf, start: int, end: int) -> bool:
    return any(load.offset <= start and end <= load.end for load in elf.loads)


def program_headers_range(elf: Elf) -> tuple[int, int]:
    """Where their table begins and ends in the file."""
    at = elf.program_headers_at
    return at, at + len(elf.segments) * elfs.PROGRAM_HEADER.size


def loaded_table_address(elf: Elf) -> int | None:
    """Where the program headers are in memory; None where they are not."""
    start, end = program_headers_range(elf)
    return Addresses("", elf)(start) if is_loaded(elf, start, end) else None


def loaded_sections_address(elf: Elf) -> int | None:
    """Where the section headers are in memory, as patchelf may leave them; None: they are not, or share
    their place with a section."""
    start = elf.section_headers_at
    end = start + len(elf.sections) * elfs.SECTION_HEADER.size
    shared = any(s.file_size and s.offset < end and start < s.end for s in elf.sections)
    return Addresses("", elf)(start) if start and not shared and is_loaded(elf, start, end) else None


def first_difference(a: OpenFile, a_at: int, b: OpenFile, b_at: int, length: int) -> int | None:
    """How far into two ranges they first differ; None: not at all."""
    for done in range(0, length, _BLOCK):
        size = min(_BLOCK, length - done)
        one, two = os.pread(a.descriptor, size, a_at + done), os.pread(b.descriptor, size, b_at + done)
        if one != two:
            return done + next(
                (i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two))
            )
        if len(one) < size:
            return done + len(one)
    return None
