"""Prove a stripped file against its source, reading both anew.

What must hold:
- the same segments, at the same addresses, with the same sizes and flags, `p_offset ≡ p_vaddr` modulo
  an alignment that is no smaller than a page and than what a section in the segment wants;
- every loaded byte is the same, but for the ELF header and the program headers;
- every other segment (dynamic section, notes, TLS, RELRO) has the bytes it had;
- every section is the one it was, byte for byte, or it is inactive: then it was neither allocated nor
  loaded, and no section that stayed links to it;
- no two things in the file overlap, and nothing behind them is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Elf, Section, Segment
from vllm_variants.fatbin.proof import Wrong, first_difference
from vllm_variants.fatbin.source import OpenFile, opened

_INACTIVE = bytes(elfs.SECTION_HEADER.size)


def verify(source: OpenFile, path: Path, unread: Collection[int]) -> None:
    """Raise `Wrong` unless `path` is `source` without the sections `unread` and without unmapped pages."""
    with opened(path) as new:
        old_elf, new_elf = elfs.parse(source), elfs.parse(new)
        _header(source, new)
        _segments(source.name, old_elf, new_elf)
        _bytes(source, old_elf, new, new_elf)
        sections(source, old_elf, new, new_elf, unread)
        _disjoint(source.name, old_elf, new_elf)


def _header(source: OpenFile, new: OpenFile) -> None:
    fields = [list(elfs.HEADER.unpack(file.at(0, elfs.HEADER.size))) for file in (source, new)]
    for header in fields:
        header[5] = header[6] = 0
    if fields[0] != fields[1]:
        raise Wrong(source.name, "the ELF header changed in more than where its tables are")


def _segments(name: str, old: Elf, new: Elf) -> None:
    for before, after in zip(old.segments, new.segments, strict=True):
        moved = before.type == elfs.PT_PHDR and after.type == elfs.PT_NULL
        if moved and not _table_is_loaded(new):
            continue
        if _placed(before) != _placed(after):
            raise Wrong(name, f"the segment of type {before.type:#x} at {before.address:#x} changed")
        if after.type == elfs.PT_LOAD and after.file_size:
            wanted = [s.align for s in old.sections if s.flags & elfs.SHF_ALLOC and _contains(before, s)]
            least = min(before.align, max(old.page, *wanted, 1))
            if after.align < least or after.align & (after.align - 1):
                raise Wrong(name, f"the segment at {after.address:#x} lost its alignment")
            if (after.offset - after.address) % after.align:
                raise Wrong(name, f"the segment at {after.address:#x} is not aligned")
    page, table = new.page, new.program_headers_at
    if not _table_is_loaded(new) and any(
        load.offset <= table < -(-load.end // page) * page for load in new.loads
    ):
        raise Wrong(name, "the program headers lie in a mapped page")
    if _table_is_loaded(old) and not _table_is_loaded(new):
        raise Wrong(name, "the program headers were loaded, and are not any more")


def _placed(segment: Segment) -> Segment:
    """All of a segment but where it is in the file; a `PT_LOAD` may have another alignment."""
    return replace(segment, offset=0, align=0 if segment.type == elfs.PT_LOAD else segment.align)


def _bytes(source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf) -> None:
    """Compare each segment's bytes, around the two headers that may change."""
    table = old.program_headers_at
    headers = [(0, elfs.HEADER.size)]
    if _table_is_loaded(new_elf):
        headers.append((table, table + len(old.segments) * elfs.PROGRAM_HEADER.size))
    for before, after in zip(old.segments, new_elf.segments, strict=True):
        if after.type == elfs.PT_NULL:
            continue
        for start, end in _around(before.offset, before.end, headers):
            to = after.offset + start - before.offset
            if (at := first_difference(source, start, new, to, end - start)) is not None:
                address = before.address + start - before.offset + at
                raise Wrong(source.name, f"the byte at address {address:#x} changed")


def _around(start: int, end: int, holes: Collection[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for hole_start, hole_end in sorted(holes):
        if start < min(hole_start, end):
            yield start, min(hole_start, end)
        start = max(start, min(hole_end, end)) if hole_start < end else start
    if start < end:
        yield start, end


def sections(source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, unread: Collection[int]) -> None:
    """Every section but the `unread` is the one it was, byte for byte; raise `Wrong` otherwise."""
    if len(old.sections) != len(new_elf.sections):
        raise Wrong(source.name, "the number of sections changed")
    for index, (before, after) in enumerate(zip(old.sections, new_elf.sections, strict=True)):
        if index in unread:
            _inactive(source.name, old, before, new, new_elf.section_headers_at, index)
            continue
        if replace(before, offset=0) != replace(after, offset=0):
            raise Wrong(source.name, f"section {before.name} is not the section it was")
        if before.link in unread:
            raise Wrong(source.name, f"section {before.name} links to a section that went")
        if not before.file_size:
            continue
        if before.flags & elfs.SHF_ALLOC and not any(
            load.offset - load.address == after.offset - after.address for load in new_elf.loads
        ):
            raise Wrong(source.name, f"section {before.name} is not where its segment is")
        if _holds_headers(old, before):
            continue
        if first_difference(source, before.offset, new, after.offset, before.size) is not None:
            raise Wrong(source.name, f"section {before.name} changed")


def _inactive(name: str, old: Elf, before: Section, new: OpenFile, table: int, index: int) -> None:
    if before.flags & elfs.SHF_ALLOC or any(
        load.offset < before.end and before.offset < load.end for load in old.loads
    ):
        raise Wrong(name, f"section {before.name} is loaded, and was dropped")
    at = table + index * elfs.SECTION_HEADER.size
    if new.at(at, elfs.SECTION_HEADER.size) != _INACTIVE:
        raise Wrong(name, f"the header of section {before.name} is not inactive")


def _disjoint(name: str, old: Elf, new: Elf) -> None:
    """What lies behind the loaded bytes: kept sections and tables, one after the other to the end."""
    end = max(load.end for load in new.loads)
    parts = [(s.offset, s.end) for s in new.sections if s.file_size and s.offset >= end]
    if new.sections:
        table = new.section_headers_at
        parts.append((table, table + len(new.sections) * elfs.SECTION_HEADER.size))
    if not _table_is_loaded(new):
        table = new.program_headers_at
        parts.append((table, table + len(new.segments) * elfs.PROGRAM_HEADER.size))
    for before, after in pairwise([(0, end), *sorted(parts)]):
        if before[1] > after[0]:
            raise Wrong(name, f"two things lie at offset {after[0]:#x}")
    if max([end, *(end for _, end in parts)]) != new.size:
        raise Wrong(name, "something is left behind its last part")


def _table_is_loaded(elf: Elf) -> bool:
    at, end = elf.program_headers_at, elf.program_headers_at + len(elf.segments) * elfs.PROGRAM_HEADER.size
    return any(load.offset <= at and end <= load.end for load in elf.loads)


def _contains(segment: Segment, section: Section) -> bool:
    return segment.offset <= section.offset and section.offset + section.file_size <= segment.end


def _holds_headers(elf: Elf, section: Section) -> bool:
    """Whether a section covers the program headers or the ELF header: a segment compares its bytes then."""
    at, end = elf.program_headers_at, elf.program_headers_at + len(elf.segments) * elfs.PROGRAM_HEADER.size
    return (section.offset < end and at < section.end) or section.offset < elfs.HEADER.size
