"""ELF64 headers: read them, and lay a file out anew after pages of it are dropped.

The layout keeps every virtual address. Dropped ranges are whole pages, counted from the file's
start, so everything behind one moves towards the front by whole pages and `p_offset ≡ p_vaddr`
(modulo the page) holds by itself. A `PT_LOAD` that loses pages is split around them. The program
headers, of which there are now more, go to the end of the file, on a page of their own: a loader
must not take them for part of a mapped segment.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from vllm_variants.fatbin.source import Malformed, Source, next_nonzero

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")

ET_REL, ET_DYN = 1, 3
PT_NULL, PT_LOAD, PT_PHDR = 0, 1, 6
SHT_NOBITS, SHF_ALLOC = 8, 2
PN_XNUM = 0xFFFF

PAGE_SIZES = {62: 0x1000, 183: 0x10000}
"""Per machine (x86-64, aarch64) the largest page a kernel may use, in bytes: segments must start on
such a page."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    align: int

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.file_size


@dataclass(frozen=True, slots=True)
class Section:
    """A section header with its name."""

    name: str
    name_offset: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int

    @property
    def file_size(self) -> int:
        """Bytes it takes in the file."""
        return 0 if self.type == SHT_NOBITS else self.size

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.file_size


@dataclass(frozen=True)
class Elf:
    """The headers of one file."""

    type: int
    machine: int
    program_headers_at: int
    section_headers_at: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    size: int

    @property
    def page(self) -> int:
        """The page to which segments must be aligned, in bytes."""
        return PAGE_SIZES[self.machine]

    @property
    def loads(self) -> list[Segment]:
        return [segment for segment in self.segments if segment.type == PT_LOAD]


def is_elf64(source: Source) -> bool:
    """Whether this is a little-endian ELF64 file for a machine that vLLM runs on."""
    if source.size < HEADER.size:
        return False
    head = source.at(0, 20)
    return head[:6] == b"\x7fELF\x02\x01" and int.from_bytes(head[18:20], "little") in PAGE_SIZES


def parse(source: Source) -> Elf:
    """Read the headers; raise `Malformed` where they point outside the file or contradict themselves."""
    _, kind, machine, _, _, phoff, shoff, _, _, phsize, phnum, shsize, shnum, names_at = HEADER.unpack(
        source.at(0, HEADER.size)
    )
    if shoff and shsize != SECTION_HEADER.size:
        raise Malformed(source.name, 0x3A, f"section headers of {shsize} bytes")
    if phnum and phsize != PROGRAM_HEADER.size:
        raise Malformed(source.name, 0x36, f"program headers of {phsize} bytes")
    if shoff and (shnum == 0 or phnum == PN_XNUM or names_at == PN_XNUM):  # the real numbers are in section 0
        first = SECTION_HEADER.unpack(source.at(shoff, SECTION_HEADER.size))
        shnum, names_at = shnum or first[5], first[6] if names_at == PN_XNUM else names_at
        phnum = first[7] if phnum == PN_XNUM else phnum
    segments = tuple(_segments(source, phoff, phnum))
    sections = tuple(_sections(source, shoff, shnum if shoff else 0, names_at))
    return Elf(kind, machine, phoff, shoff, segments, sections, source.size)


def _segments(source: Source, at: int, count: int) -> list[Segment]:
    table = source.at(at, count * PROGRAM_HEADER.size) if count else b""
    segments = [Segment(*fields) for fields in PROGRAM_HEADER.iter_unpack(table)]
    for index, segment in enumerate(segments):
        if segment.type == PT_LOAD and segment.end > source.size:
            where = at + index * PROGRAM_HEADER.size
            raise Malformed(
                source.name, where, f"a segment that ends at {segment.end:#x}, behind the file's end"
            )
    return segments


def _sections(source: Source, at: int, count: int, names_at: int) -> list[Section]:
    if count * SECTION_HEADER.size > source.size:
        raise Malformed(source.name, at, f"{count} section headers, more than the file can hold")
    table = source.at(at, count * SECTION_HEADER.size) if count else b""
    raw = list(SECTION_HEADER.iter_unpack(table))
    if not raw:
        return []
    if names_at >= len(raw):
        raise Malformed(source.name, 0x3E, f"the sections' names are in section {names_at} of {len(raw)}")
    names = source.at(raw[names_at][4], raw[names_at][5]) if raw[names_at][1] != SHT_NOBITS else b""
    sections = []
    for index, fields in enumerate(raw):
        name = names[fields[0] : names.find(b"\0", fields[0])].decode("utf-8", "replace")
        section = Section(name, *fields)
        if section.end > source.size:
            where = at + index * SECTION_HEADER.size
            raise Malformed(
                source.name, where, f"section {name} ends at {section.end:#x}, behind the file's end"
            )
        sections.append(section)
    return sections


@dataclass(frozen=True)
class Hole:
    """A range of the source file, whole pages, that the new file does not have."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Shift:
    """Where an offset of the source file lies in the new file."""

    def __init__(self, holes: Sequence[Hole]) -> None:
        self._starts = [hole.start for hole in holes]
        self._holes = holes
        self._dropped = [0, *accumulate(hole.size for hole in holes)]

    def __call__(self, offset: int) -> int:
        """The new offset; inside a hole, the hole's place."""
        index = bisect_right(self._starts, offset)
        if index and offset < self._holes[index - 1].end:
            return self._starts[index - 1] - self._dropped[index - 1]
        return offset - self._dropped[index]


def holes_in(elf: Elf, dead: Sequence[tuple[int, int]], smallest: int, most: int) -> list[Hole]:
    """The holes that can be cut for `dead` ranges of the file: whole pages, each inside one `PT_LOAD`.

    Holes under `smallest` bytes are not worth a segment; no more than the `most` largest are cut.
    """
    page = elf.page
    loads = sorted((s for s in elf.loads if (s.address - s.offset) % page == 0), key=lambda s: s.offset)
    starts = [load.offset for load in loads]
    holes = []
    for start, end in dead:
        for load in loads[max(bisect_right(starts, start) - 1, 0) : bisect_right(starts, end)]:
            first = -(-max(start, load.offset) // page) * page
            last = min(end, load.end) // page * page
            if last - first >= smallest:
                holes.append(Hole(first, last))
    largest = sorted(holes, key=lambda hole: hole.size, reverse=True)[:most]
    return sorted(largest, key=lambda hole: hole.start)


def split(segment: Segment, holes: Sequence[Hole], shift: Shift, page: int) -> list[Segment]:
    """The parts of one `PT_LOAD` between the holes in it; the last keeps what has no file bytes (bss)."""
    inside = [hole for hole in holes if segment.offset <= hole.start and hole.end <= segment.end]
    if not inside:
        return [replace(segment, offset=shift(segment.offset), align=page)]
    starts = [segment.offset, *(hole.end for hole in inside)]
    ends = [*(hole.start for hole in inside), segment.end]
    parts = [
        replace(
            segment,
            offset=shift(start),
            address=segment.address + start - segment.offset,
            physical=segment.physical + start - segment.offset,
            file_size=end - start,
            memory_size=end - start,
            align=page,
        )
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
    if parts and segment.memory_size > segment.file_size:
        tail = segment.address + segment.memory_size - parts[-1].address
        parts[-1] = replace(parts[-1], memory_size=tail)
    return parts


@dataclass(frozen=True)
class Layout:
    """The headers of the new file. `size` counts all of it."""

    header: bytes
    program_headers_at: int
    program_headers: bytes
    section_headers_at: int
    section_headers: bytes
    size: int


def lay_out(elf: Elf, header: bytes, holes: Sequence[Hole]) -> Layout:
    """The headers of `elf` without `holes`; `header` is the source's ELF header, 64 bytes.

    A `PT_PHDR` is made `PT_NULL`: the table is not in memory any more, and glibc then keeps a copy.
    """
    shift, page = Shift(holes), elf.page
    segments: list[Segment] = []
    for segment in elf.segments:
        if segment.type == PT_LOAD:
            segments += split(segment, holes, shift, page)
        elif segment.type == PT_PHDR:
            segments.append(Segment(PT_NULL, 0, 0, 0, 0, 0, 0, 0))
        else:
            segments.append(replace(segment, offset=shift(segment.offset)))
    moved = [
        replace(s, offset=shift(s.offset), size=shift(s.end) - shift(s.offset) if s.file_size else s.size)
        for s in elf.sections
    ]
    table_at = -(-shift(content_end(elf)) // page) * page
    table = b"".join(PROGRAM_HEADER.pack(*_fields(s)) for s in segments)
    shoff = shift(elf.section_headers_at) if elf.section_headers_at else 0
    fields = list(HEADER.unpack(header))
    fields[5], fields[6], fields[10] = table_at, shoff, len(segments)
    sections = b"".join(SECTION_HEADER.pack(*_section_fields(s)) for s in moved)
    return Layout(HEADER.pack(*fields), table_at, table, shoff, sections, table_at + len(table))


def content_end(elf: Elf) -> int:
    """Where the file ends, without a program header table that an earlier slimming put there."""
    described = _described_end(elf)
    table_end = elf.program_headers_at + len(elf.segments) * PROGRAM_HEADER.size
    return described if table_end == elf.size and elf.program_headers_at >= described else elf.size


def appended(source: Source, elf: Elf) -> int:
    """How many bytes lie behind all that the headers describe: a signature, or another file.

    Zeros do not count: patchelf leaves one.
    """
    table_end = elf.program_headers_at + len(elf.segments) * PROGRAM_HEADER.size
    first = next_nonzero(source, max(_described_end(elf), table_end), elf.size)
    return elf.size - first


def _described_end(elf: Elf) -> int:
    sections_end = elf.section_headers_at + len(elf.sections) * SECTION_HEADER.size
    return max([sections_end, *(s.end for s in elf.loads), *(s.end for s in elf.sections)])


def _fields(s: Segment) -> tuple[int, ...]:
    return s.type, s.flags, s.offset, s.address, s.physical, s.file_size, s.memory_size, s.align


def _section_fields(s: Section) -> tuple[int, ...]:
    return (
        s.name_offset, s.type, s.flags, s.address, s.offset, s.size, s.link, s.info, s.align, s.entry_size,
    )  # fmt: skip
