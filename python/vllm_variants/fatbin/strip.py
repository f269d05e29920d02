"""What an ELF file holds that no loader maps and no program reads, and the file without it.

Two things go. Symbol tables and debug information, which debuggers and host profilers read: the rule
is GNU strip's, so a section of a kind that is not known stays, and so do notes, `.comment` and
`.gnu_debuglink`. And whatever lies in the file between pages that a `PT_LOAD` maps: linkers, patchelf
and auditwheel put sections there, and leave room that nothing describes.

Nothing that is mapped changes, but for the ELF header and the program headers. The new file is

    mapped pages, without the holes between them | kept sections | section headers | program headers

where the program headers move only if they were not mapped, or if there are more of them than before.
The header of a section that goes becomes inactive (`SHT_NULL`, all zero), so every section keeps its
number: `st_shndx`, `sh_link`, `sh_info` and `e_shstrndx` hold.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from vllm_variants.fatbin.elf import (
    ET_REL,
    HEADER,
    PN_XNUM,
    PROGRAM_HEADER,
    PT_LOAD,
    PT_NULL,
    PT_PHDR,
    SHF_ALLOC,
    Elf,
    Section,
    Segment,
    appended,
    is_program,
)
from vllm_variants.fatbin.layout import (
    INERT,
    Copy,
    Hole,
    Layout,
    Shift,
    congruent,
    needed_end,
    pack_sections,
    pack_segments,
    split,
    without_bytes,
)
from vllm_variants.fatbin.source import Source

SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_REL, SHT_SYMTAB_SHNDX = 0, 2, 3, 4, 9, 18
_SYMBOLS = (SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_REL, SHT_SYMTAB_SHNDX)
_DEBUG = re.compile(
    r"\.z?debug|\.gnu\.debuglto_|\.gnu\.linkonce\.wi\.|\.stab|\.line$|\.gdb_index$|\.gnu_debugdata$"
)
"""The names that binutils' bfd/elf.c takes for debug information, and LZMA-compressed symbols."""

INACTIVE = Section("", 0, SHT_NULL, 0, 0, 0, 0, 0, 0, 0, 0)
"""The header of a section that went."""


def refusal(source: Source, elf: Elf) -> str:
    """Why a file must stay as it is; empty where it need not."""
    if elf.type == ET_REL:
        return "an object file: its symbols are what a linker reads"
    if not elf.loads:
        return "nothing in it is loaded"
    if not elf.sections:
        return "no section table says what lies in it"
    if extra := appended(source, elf):
        return f"signed, or with other data appended: {extra} bytes behind its last section"
    if any((load.address - load.offset) % elf.page for load in elf.loads):
        return "a segment does not lie on a page"
    mapped = _mapped_bytes(elf)
    for segment in elf.segments:
        if segment.type not in (PT_LOAD, PT_NULL) and segment.file_size and not _in(mapped, segment):
            return f"a segment of type {segment.type:#x} is not loaded"
    for section in elf.sections:
        if section.flags & SHF_ALLOC and section.file_size and not _in(mapped, section):
            return f"section {section.name} should be loaded, and no segment does it"
        if section.file_size and _touches(mapped, section) and not _in(mapped, section):
            return f"section {section.name} is loaded in part"
    if is_program(source, elf) and not _in(mapped, _program_headers(elf)):
        return "a program whose headers are not loaded"
    return ""


def unread_sections(source: Source, elf: Elf) -> frozenset[int]:
    """The sections that only debuggers and host profilers read, by number.

    What a section that stays links to stays too, as do the sections' own names.
    """
    mapped = _mapped_bytes(elf)
    unread = {
        index
        for index, section in enumerate(elf.sections)
        if not section.flags & SHF_ALLOC and section.file_size and not _touches(mapped, section)
        if section.type in _SYMBOLS or _DEBUG.match(section.name)
    } - {_names_index(source, elf)}
    while linked := {s.link for i, s in enumerate(elf.sections) if i not in unread} & unread:
        unread -= linked
    return frozenset(unread)


def unmapped_holes(elf: Elf) -> list[Hole]:
    """The pages between mapped ones, by offset: nothing in memory comes from them.

    What follows a hole moves by the hole's size, so that is a multiple of the library's alignment.
    """
    step = elf.alignment
    pages = [
        (start // elf.page * elf.page, -(-end // elf.page) * elf.page) for start, end in _mapped_bytes(elf)
    ]
    holes = [
        Hole(end, end + (start - end) // step * step) for (_, end), (start, _) in pairwise(_merged(pages))
    ]
    return [hole for hole in holes if hole.size]


def lay_out(elf: Elf, header: bytes, inside: Sequence[Hole], unread: frozenset[int]) -> Layout:
    """The layout of `elf` without what no segment maps, and without the sections numbered in `unread`.

    `inside` are holes within segments, which slimming makes; `header` is the source's, 64 bytes.
    """
    holes = tuple(sorted([*inside, *unmapped_holes(elf)], key=lambda hole: hole.start))
    shift, mapped = Shift(holes), _mapped_bytes(elf)
    mapped_end = max(end for _, end in mapped)
    segments = [part for segment in elf.segments for part in _moved(segment, elf, holes, shift, mapped_end)]
    begin = max(shift(mapped_end), needed_end(segments, elf.page))
    sections, tail, at = _placed_sections(elf, mapped, shift, mapped_end, begin, unread)
    table = pack_sections(sections)
    table_at = _aligned(at, 8) if table else 0
    end = table_at + len(table) if table else at
    in_place = len(segments) == len(elf.segments) and _in(mapped, _program_headers(elf))
    if not in_place:
        segments = [INERT if s.type == PT_PHDR else s for s in segments]
    programs = pack_segments(segments)
    # Not in a mapped page: a loader would read them from memory, where that page may end in zeros.
    programs_at = shift(elf.program_headers_at) if in_place else _aligned(end, elf.page)
    fields = list(HEADER.unpack(header))
    fields[5], fields[6], fields[10] = programs_at, table_at, len(segments)
    size = end if in_place else programs_at + len(programs)
    return Layout(
        HEADER.pack(*fields), programs_at, programs, table_at, table, size, holes, mapped_end, tuple(tail)
    )


def _placed_sections(
    elf: Elf,
    mapped: Sequence[tuple[int, int]],
    shift: Shift,
    mapped_end: int,
    at: int,
    unread: frozenset[int],
) -> tuple[list[Section], list[Copy], int]:
    """The section headers, the sections that stand behind the mapped part, from `at` on, and their end."""
    tail: list[Copy] = []
    sections: list[Section] = []
    for index, section in enumerate(elf.sections):
        if index in unread:
            sections.append(INACTIVE)
        elif not section.file_size:
            sections.append(replace(section, offset=shift(min(section.offset, mapped_end))))
        elif _in(mapped, section):
            start = shift(section.offset)
            sections.append(replace(section, offset=start, size=shift(section.end) - start))
        else:
            at = _aligned(at, section.align if _follows_alignment(section, elf) else 1)
            tail.append(Copy(at, section.offset, section.size))
            sections.append(replace(section, offset=at))
            at += section.size
    return sections, tail, at


def _follows_alignment(section: Section, elf: Elf) -> bool:
    """Whether an unloaded section lies in the source as it asks: a header may ask for anything."""
    return 1 < section.align <= elf.page and section.offset % section.align == 0


def _moved(segment: Segment, elf: Elf, holes: Sequence[Hole], shift: Shift, mapped_end: int) -> list[Segment]:
    """A segment in the new file; a `PT_LOAD` with holes in it becomes several."""
    if segment.type != PT_LOAD:
        return [replace(segment, offset=shift(segment.offset))]
    if not segment.file_size:
        return [without_bytes(segment, elf, shift, mapped_end)]
    if any(segment.offset <= h.start and h.end <= segment.end for h in holes):
        return split(segment, holes, shift, elf.alignment)
    return [congruent(replace(segment, offset=shift(segment.offset)))]


def _names_index(source: Source, elf: Elf) -> int:
    index = int(HEADER.unpack(source.at(0, HEADER.size))[13])
    return elf.sections[0].link if index == PN_XNUM and elf.sections else index


def _program_headers(elf: Elf) -> Segment:
    size = len(elf.segments) * PROGRAM_HEADER.size
    return Segment(PT_PHDR, 0, elf.program_headers_at, 0, 0, size, 0, 0)


def _mapped_bytes(elf: Elf) -> list[tuple[int, int]]:
    """The file ranges that a loader reads: the segments' bytes, and the ELF header."""
    loads = [(load.offset, load.end) for load in elf.loads if load.file_size]
    return _merged([(0, HEADER.size), *loads])


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _in(ranges: Sequence[tuple[int, int]], part: Section | Segment) -> bool:
    """Whether all of `part` lies in one of the ranges."""
    index = bisect_right(ranges, (part.offset, 1 << 64)) - 1
    return index >= 0 and part.end <= ranges[index][1]


def _touches(ranges: Sequence[tuple[int, int]], part: Section) -> bool:
    return any(start < part.end and part.offset < end for start, end in ranges)


def _aligned(offset: int, align: int) -> int:
    return -(-offset // max(align, 1)) * max(align, 1)
