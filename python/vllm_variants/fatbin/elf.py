"""ELF64 headers of shared libraries: read, checked against the file, and nothing more."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

from vllm_variants.fatbin.source import Malformed, Source, next_nonzero

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
PT_NULL, PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_PHDR = 0, 1, 2, 3, 6
SHT_NOBITS, SHF_ALLOC = 8, 2
PN_XNUM = 0xFFFF

_DYNAMIC = struct.Struct("<QQ")
_DT_FLAGS_1, _DF_1_PIE = 0x6FFFFFFB, 0x08000000
_ADDRESSES = 1 << 64
_PADDING = 1 << 18
_MOST_HEADERS = 1 << 18
_LONGEST_NAME = 256
_MOST_NAMES = 1 << 26
"""Bytes of all sections' names; object files of large C++ programs have a few million."""

PAGE_SIZES = {62: 0x1000, 183: 0x10000}
"""Per machine (x86-64, aarch64) the largest page a kernel may use, in bytes: segments must start on
such a page."""
SMALLEST_PAGE = 0x1000
"""The smallest page that a kernel of any of them uses, in bytes."""


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
    def architecture(self) -> str:
        """Of the machine it is for, as in a system's name: `x86_64`, `aarch64`."""
        return {62: "x86_64", 183: "aarch64"}[self.machine]

    @cached_property
    def loads(self) -> tuple[Segment, ...]:
        """The segments that a loader maps, in the file's order."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD)

    @property
    def alignment(self) -> int:
        """What addresses stay aligned to, in bytes: a page, or what a section in memory asks for if more.

        A section's alignment is the largest of the data in it. Loaders (glibc from 2.35 on) place a
        library at a multiple of the largest `p_align` of its segments, so data gets no more than that.
        """
        asked = [s.align for s in self.sections if s.flags & SHF_ALLOC and s.align & (s.align - 1) == 0]
        given = max((load.align for load in self.loads), default=0)
        return max(self.page, min(max(asked, default=0), given))


def is_elf64(source: Source) -> bool:
    """Whether this is a little-endian ELF64 file for a machine that vLLM runs on."""
    if source.size < HEADER.size:
        return False
    head = source.at(0, 20)
    return head[:6] == b"\x7fELF\x02\x01" and int.from_bytes(head[18:20], "little") in PAGE_SIZES


@dataclass(frozen=True, slots=True)
class _Tables:
    """Where the tables of headers are, how many each has, and which section holds the sections' names."""

    type: int
    machine: int
    segments_at: int
    segments: int
    sections_at: int
    sections: int
    names: int


def _tables(source: Source) -> _Tables:
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
    if max(phnum, shnum) > _MOST_HEADERS:
        raise Malformed(source.name, 0x38, f"{phnum} program headers and {shnum} section headers")
    return _Tables(kind, machine, phoff, phnum, shoff, shnum if shoff else 0, names_at)


def parse(source: Source) -> Elf:
    """Read the headers; raise `Malformed` where they point outside the file or contradict themselves."""
    tables = _tables(source)
    segments = tuple(_segments(source, tables.segments_at, tables.segments))
    raw, names = _raw_sections(source, tables)
    sections = tuple(Section(_name(names, fields[0]), *fields) for fields in raw)
    at = tables.segments_at, tables.sections_at
    return Elf(tables.type, tables.machine, *at, segments, sections, source.size)


def section_named(source: Source, name: str) -> Section | None:
    """The first section of a name (not the empty one), as `parse` would give it, without making the others.

    For cubins: a library has hundreds, with hundreds of sections each. Raises `Malformed` where `parse` does.
    """
    tables = _tables(source)
    _segments(source, tables.segments_at, tables.segments)
    raw, names = _raw_sections(source, tables)
    encoded, terminated = name.encode() + b"\0", names + b"\0"
    return next((Section(name, *fields) for fields in raw if terminated.startswith(encoded, fields[0])), None)


def is_program(source: Source, elf: Elf) -> bool:
    """Whether the kernel may start this file, as it does some libraries (libc.so.6).

    A program's start-up code finds its program headers in memory, where the kernel says they are; a
    library's are read from the file. Static ones that can move name no loader: a flag tells them.
    """
    if elf.type == ET_EXEC or any(segment.type == PT_INTERP for segment in elf.segments):
        return True
    return any(
        tag == _DT_FLAGS_1 and value & _DF_1_PIE
        for segment in elf.segments
        if segment.type == PT_DYNAMIC and segment.file_size  # an empty one may lie behind the file's end
        for tag, value in _DYNAMIC.iter_unpack(source.at(segment.offset, segment.file_size // 16 * 16))
    )


def _segments(source: Source, at: int, count: int) -> list[Segment]:
    table = source.at(at, count * PROGRAM_HEADER.size) if count else b""
    segments = [Segment(*fields) for fields in PROGRAM_HEADER.iter_unpack(table)]
    for index, segment in enumerate(segments):
        if segment.type != PT_NULL and segment.file_size and segment.end > source.size:
            where = at + index * PROGRAM_HEADER.size
            raise Malformed(
                source.name, where, f"a segment that ends at {segment.end:#x}, behind the file's end"
            )
        highest = max(segment.address, segment.physical) + max(segment.file_size, segment.memory_size)
        if segment.type == PT_LOAD and highest > _ADDRESSES:
            where = at + index * PROGRAM_HEADER.size
            raise Malformed(source.name, where, f"a segment that ends at address {highest:#x}")
    return segments


_Fields = tuple[int, int, int, int, int, int, int, int, int, int]


def _raw_sections(source: Source, tables: _Tables) -> tuple[list[_Fields], bytes]:
    """The fields of each section header, none of which points outside the file, and the sections' names."""
    at, count, names_at = tables.sections_at, tables.sections, tables.names
    if count * SECTION_HEADER.size > source.size:
        raise Malformed(source.name, at, f"{count} section headers, more than the file can hold")
    table = source.at(at, count * SECTION_HEADER.size) if count else b""
    raw: list[_Fields] = list(SECTION_HEADER.iter_unpack(table))
    if not raw:
        return [], b""
    if names_at >= len(raw):
        raise Malformed(source.name, 0x3E, f"the sections' names are in section {names_at} of {len(raw)}")
    if raw[names_at][5] > _MOST_NAMES:
        raise Malformed(source.name, raw[names_at][4], f"{raw[names_at][5]} bytes of sections' names")
    names = source.at(raw[names_at][4], raw[names_at][5]) if raw[names_at][1] != SHT_NOBITS else b""
    size = source.size
    for index, (name, kind, _, _, offset, length, *_) in enumerate(raw):
        end = offset if kind == SHT_NOBITS else offset + length
        if end > size:
            where = at + index * SECTION_HEADER.size
            what = f"section {_name(names, name)} ends at {end:#x}, behind the file's end"
            raise Malformed(source.name, where, what)
    return raw, names


def _name(names: bytes, at: int) -> str:
    return names[at : at + _LONGEST_NAME].split(b"\0", 1)[0].decode("utf-8", "replace")


def content_end(elf: Elf) -> int:
    """Where the file ends, without a program header table that an earlier slimming put there."""
    described = _described_end(elf)
    table_end = elf.program_headers_at + len(elf.segments) * PROGRAM_HEADER.size
    return described if table_end == elf.size and elf.program_headers_at >= described else elf.size


def appended(source: Source, elf: Elf) -> int:
    """How many bytes lie behind all that the headers describe: a signature, or another file.

    Some zeros do not count: patchelf leaves one. More than a few pages of them are somebody's.
    """
    table_end = elf.program_headers_at + len(elf.segments) * PROGRAM_HEADER.size
    end = max(_described_end(elf), table_end)
    if elf.size - end > _PADDING:
        return elf.size - end
    return elf.size - next_nonzero(source, end, elf.size)


def _described_end(elf: Elf) -> int:
    sections_end = elf.section_headers_at + len(elf.sections) * SECTION_HEADER.size
    return max([sections_end, *(s.end for s in elf.loads), *(s.end for s in elf.sections)])
