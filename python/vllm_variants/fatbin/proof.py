"""Prove a slimmed file against its source, reading both anew.

What must hold:
- segments are aligned as their data needs, in order and disjoint, and span the addresses they spanned;
- every address that had file bytes has the same bytes, except in the headers and in the containers
  that were rewritten; what is missing lies wholly in the dead part of one of those;
- every section has its bytes where its header says, and code in memory is what the section says; or it
  is one of those that go, and then nothing loads it, nothing links to it and its header is zero;
- each container stands at its old address and holds exactly the images it should: byte for byte, or
  the same code once decompressed, or a cubin with the kernels of the PTX that it came from;
- where unmapped parts go, no two things in the file overlap, and nothing is left behind the last.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise

from vllm_variants.errors import AuditError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.elf import Elf, Section, Segment
from vllm_variants.fatbin.native.proof import wrong as images_wrong
from vllm_variants.fatbin.rewrite import Rewrite, containers_in, device_sections, resource_sections
from vllm_variants.fatbin.source import Malformed, OpenFile

_BLOCK = 1 << 18


class Wrong(AuditError):
    """The new file is not what it must be; the old one was not replaced."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"{name}: slimming would have broken it: {what}", hint="report this library; it was kept"
        )


def verify(
    source: OpenFile, new: OpenFile, changes: Sequence[Rewrite], unread: Collection[int] | None = None
) -> None:
    """Raise `Wrong` or `Malformed` unless the file `new` is `source` with exactly `changes` made.

    `unread` are the sections that went, by number; None: what no segment maps stays.
    """
    old_elf = elfs.parse(source)
    try:
        new_elf = elfs.parse(new)
    except Malformed as error:
        raise Wrong(source.name, f"the new file is malformed: {error.message}") from error
    _header(source, new)
    _segments(source, old_elf, new, new_elf)
    _bytes(source, old_elf, new, new_elf, changes)
    touched = _touched(old_elf, changes)
    _sections(source, old_elf, new, new_elf, touched, unread or ())
    _containers(source, old_elf, new, new_elf, changes, touched)
    if unread is not None:
        _disjoint(source.name, new_elf)


def _header(source: OpenFile, new: OpenFile) -> None:
    """The ELF header may differ in where its tables are and how many segments there are."""
    old_fields, new_fields = (
        list(elfs.HEADER.unpack(each.at(0, elfs.HEADER.size))) for each in (source, new)
    )
    for index in (5, 6, 10):
        old_fields[index] = new_fields[index] = 0
    if old_fields != new_fields:
        raise Wrong(source.name, "the ELF header changed in more than where its tables are")


def _segments(source: OpenFile, old: Elf, new_file: OpenFile, new: Elf) -> None:
    name, page, loads = source.name, new.page, new.loads
    needed = _needed_alignment(old)
    for load in loads:
        whole = next((each for each in old.loads if _is_part(load, each)), None)
        if whole is None:
            raise Wrong(name, f"the segment at {load.address:#x} is no part of one that was there")
        if not _is_aligned(load, whole, needed, page):
            raise Wrong(name, f"the segment at {load.address:#x} is not aligned as it must be")
        if any(
            _finds_its_page(whole, old, size) and not _finds_its_page(load, new, size)
            for size in (elfs.SMALLEST_PAGE, page)
        ):
            raise Wrong(name, f"the segment at {load.address:#x} has no page in the file to begin in")
    for before, after in pairwise(loads):
        if before.address + before.memory_size > after.address:
            raise Wrong(name, f"the segments at {before.address:#x} and {after.address:#x} overlap")
    ends = [max(load.address + load.memory_size for load in each.loads) for each in (old, new)]
    if loads[0].address != old.loads[0].address or -(-ends[0] // page) != -(-ends[1] // page):
        raise Wrong(name, "it does not span the addresses it spanned")
    _other_segments(source, old, new_file, new)
    table, end = _program_headers(new)
    in_place = _loaded_table_address(new)
    if in_place is not None and in_place == _loaded_table_address(old):
        return
    if any(load.offset < end and table < -(-load.end // page) * page for load in loads):
        raise Wrong(name, "the program headers lie in a mapped page")


def _other_segments(source: OpenFile, old: Elf, new_file: OpenFile, new: Elf) -> None:
    """Those that are not loaded by themselves: the same, and the bytes of each where its header says."""
    kinds = (elfs.PT_LOAD, elfs.PT_PHDR, elfs.PT_NULL)
    before, after = ([s for s in each.segments if s.type not in kinds] for each in (old, new))
    if [_placed(segment) for segment in before] != [_placed(segment) for segment in after]:
        raise Wrong(source.name, "a segment other than PT_LOAD changed")
    for was, now in zip(before, after, strict=True):
        inside = any(
            load.offset - load.address == now.offset - now.address
            and load.address <= now.address < load.address + load.memory_size
            for load in new.loads
        )
        if inside or first_difference(source, was.offset, new_file, now.offset, now.file_size) is None:
            continue
        raise Wrong(source.name, f"the bytes of the segment of type {now.type:#x} changed")


def _program_headers(elf: Elf) -> tuple[int, int]:
    """Where their table begins and ends in the file."""
    at = elf.program_headers_at
    return at, at + len(elf.segments) * elfs.PROGRAM_HEADER.size


def _loaded_sections_address(elf: Elf) -> int | None:
    """Where the section headers are in memory, as patchelf may leave them; None: they are not, or share
    their place with a section."""
    start = elf.section_headers_at
    end = start + len(elf.sections) * elfs.SECTION_HEADER.size
    shared = any(s.file_size and s.offset < end and start < s.end for s in elf.sections)
    return _Addresses(elf)(start) if start and not shared and _is_loaded(elf, start, end) else None


def _is_loaded(elf: Elf, start: int, end: int) -> bool:
    return any(load.offset <= start and end <= load.end for load in elf.loads)


def _loaded_table_address(elf: Elf) -> int | None:
    """Where the program headers are in memory; None where they are not."""
    start, end = _program_headers(elf)
    return _Addresses(elf)(start) if _is_loaded(elf, start, end) else None


def _needed_alignment(elf: Elf) -> int:
    """The largest alignment of any section in memory, in bytes, and at least a page."""
    asked = (s.align for s in elf.sections if s.flags & elfs.SHF_ALLOC and s.align & (s.align - 1) == 0)
    return max([elf.page, *asked])


def _is_aligned(part: Segment, whole: Segment, needed: int, page: int) -> bool:
    """Whether a loader accepts the segment, and aligns the library as much as its data needs.

    It may promise less than `whole` did only where no data asks for more, and it must keep its word:
    address and offset are congruent to what it promises, and to the page as far as they were before.
    """
    distance, before = part.address - part.offset, whole.address - whole.offset
    return (
        part.align > 0
        and part.align & (part.align - 1) == 0
        and min(whole.align, needed) <= part.align <= max(whole.align, page)
        and distance % part.align == 0
        and (distance % page == 0 or before % page != 0)
    )


def _finds_its_page(load: Segment, elf: Elf, page: int) -> bool:
    """Whether the file has the page (of `page` bytes) that a loader maps for memory that begins within it."""
    return bool(load.file_size or load.address % page == 0 or load.offset // page * page < elf.size)


def _is_part(part: Segment, whole: Segment) -> bool:
    """Whether a segment is `whole` or a piece of it; only its last piece may have memory without bytes."""
    ends = part.address + part.memory_size, whole.address + whole.memory_size
    return (
        whole.address <= part.address
        and ends[0] <= ends[1]
        and (part.file_size == part.memory_size or (part.file_size < part.memory_size and ends[0] == ends[1]))
        and part.flags == whole.flags
        and part.physical - part.address == whole.physical - whole.address
    )


def _placed(segment: Segment) -> tuple[int, ...]:
    s = segment
    return s.type, s.flags, s.address, s.physical, s.file_size, s.memory_size, s.align


def _bytes(source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, changes: Sequence[Rewrite]) -> None:
    """Walk the new file's segments by address and compare each with the source, around the changes."""
    address_of = _Addresses(old)
    edits = [(address_of(0), address_of(0) + elfs.HEADER.size)]  # see _header
    if (table := _loaded_table_address(new_elf)) is not None and table == _loaded_table_address(old):
        edits.append((table, table + len(new_elf.segments) * elfs.PROGRAM_HEADER.size))  # see _segments
    if (table := _loaded_sections_address(new_elf)) is not None and table == _loaded_sections_address(old):
        edits.append((table, table + len(new_elf.sections) * elfs.SECTION_HEADER.size))  # see _sections
    for change in changes:
        address = address_of(change.container.offset)
        edits.append((address, address + change.dead_end - change.container.offset))
    edits.sort()
    starts = [start for start, _ in edits]
    covered: list[tuple[int, int]] = []
    for load in new_elf.loads:
        at, end = load.address, load.address + load.file_size
        covered.append((at, end))
        while at < end:
            index = bisect_right(starts, at) - 1
            if index >= 0 and at < edits[index][1]:
                at = min(end, edits[index][1])
                continue
            until = min(end, starts[index + 1] if index + 1 < len(starts) else end)
            for old_at, length in _file_ranges(old, at, until):
                offset = load.offset + at - load.address
                if (wrong := first_difference(source, old_at, new, offset, length)) is not None:
                    raise Wrong(source.name, f"the byte at address {at + wrong:#x} changed")
                at += length
    _gaps(source.name, old, covered, edits)


def _gaps(name: str, old: Elf, covered: Sequence[tuple[int, int]], edits: Sequence[tuple[int, int]]) -> None:
    """Addresses that lost their bytes must lie in an edit."""
    ends = [0, *(end for _, end in covered)]
    begins = [*(start for start, _ in covered), 1 << 63]
    starts = [start for start, _ in edits]
    for load in old.loads:
        for gap_start, gap_end in zip(ends, begins, strict=True):
            start, end = max(gap_start, load.address), min(gap_end, load.address + load.file_size)
            if start < end:
                index = bisect_right(starts, start) - 1
                if index < 0 or end > edits[index][1]:
                    raise Wrong(name, f"bytes that are needed were dropped at address {start:#x}")


class _Addresses:
    """Where a loader puts a file's bytes. Found by bisection: a slimmed library has thousands of segments."""

    def __init__(self, elf: Elf) -> None:
        self._loads = sorted((s for s in elf.loads if s.file_size), key=lambda load: load.offset)
        self._starts = [load.offset for load in self._loads]

    def __call__(self, offset: int) -> int:
        """The address of the byte at an offset; raise `Wrong` where no segment has it."""
        last = bisect_right(self._starts, offset)
        for load in chain(self._loads[max(last - 1, 0) : last], self._loads):
            if load.offset <= offset < load.end:
                return load.address + offset - load.offset
        raise Wrong("", f"offset {offset:#x} is in no segment")


def _file_ranges(elf: Elf, address: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file has the bytes of `[address, end)`: (offset, length), in order."""
    for load in elf.loads:
        start, stop = max(address, load.address), min(end, load.address + load.file_size)
        if start < stop:
            if start != address:
                break
            yield load.offset + start - load.address, stop - start
            address = stop
    if address != end:
        raise Wrong("", f"address {address:#x} had no bytes before")


def _touched(old: Elf, changes: Sequence[Rewrite]) -> list[int]:
    """The sections, by index, that hold a change; device sections all count."""
    starts = [change.container.offset for change in changes]
    kept = {section.offset for section in device_sections(old)}
    for section in resource_sections(old):
        if bisect_right(starts, section.end) > bisect_right(starts, section.offset - 1):
            kept.add(section.offset)
    return [
        index for index, section in enumerate(old.sections) if section.file_size and section.offset in kept
    ]


def _sections(
    source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, touched: Sequence[int], unread: Collection[int]
) -> None:
    if len(old.sections) != len(new_elf.sections):
        raise Wrong(source.name, "the number of sections changed")
    for index, (before, after) in enumerate(zip(old.sections, new_elf.sections, strict=True)):
        if index in unread:
            _inactive(source.name, old, before, new, new_elf.section_headers_at, index)
            continue
        if replace(before, offset=0, size=0) != replace(after, offset=0, size=0):
            raise Wrong(source.name, f"section {before.name} is not the section it was")
        if before.link in unread:
            raise Wrong(source.name, f"section {before.name} links to a section that went")
        if index in touched or not before.file_size:
            continue
        if after.size != before.size:
            raise Wrong(source.name, f"section {before.name} changed its size")
        if before.flags & elfs.SHF_ALLOC:
            _placed_section(source, old, before, new, new_elf, after)
        elif first_difference(source, before.offset, new, after.offset, before.size) is not None:
            raise Wrong(source.name, f"section {before.name} changed")


def _placed_section(
    source: OpenFile, old: Elf, before: Section, new: OpenFile, new_elf: Elf, after: Section
) -> None:
    """Raise `Wrong` unless a section in memory has its bytes where its segment has them.

    One that an earlier slimming cut lies in several segments: it begins where the first has it, and
    has the bytes that it had.
    """
    at_home = [load for load in new_elf.loads if load.offset - load.address == after.offset - after.address]
    if any(load.offset <= after.offset and after.end <= load.end for load in at_home):
        return
    was_cut = not any(load.offset <= before.offset and before.end <= load.end for load in old.loads)
    begins = any(load.offset <= after.offset < load.end for load in at_home)
    if not (was_cut and begins) or (
        first_difference(source, before.offset, new, after.offset, before.size) is not None
    ):
        raise Wrong(source.name, f"section {before.name} is not where its segment is")


def _inactive(name: str, old: Elf, before: Section, new: OpenFile, table: int, index: int) -> None:
    """Raise `Wrong` unless nothing loads the section, and its header in the new file is zero."""
    if before.flags & elfs.SHF_ALLOC or any(
        load.file_size and load.offset < before.end and before.offset < load.end for load in old.loads
    ):
        raise Wrong(name, f"section {before.name} is loaded, and was dropped")
    size = elfs.SECTION_HEADER.size
    if any(new.at(table + index * size, size)):
        raise Wrong(name, f"the header of section {before.name} is not inactive")


def _disjoint(name: str, new: Elf) -> None:
    """What lies behind the loaded bytes: kept sections and tables, one after the other to the end."""
    end = max((load.end for load in new.loads if load.file_size), default=0)
    parts = [(s.offset, s.end) for s in new.sections if s.file_size and s.offset >= end]
    if new.sections:
        table = new.section_headers_at
        parts.append((table, table + len(new.sections) * elfs.SECTION_HEADER.size))
    if not _is_loaded(new, *_program_headers(new)):
        parts.append(_program_headers(new))
    for before, after in pairwise([(0, end), *sorted(parts)]):
        if before[1] > after[0]:
            raise Wrong(name, f"two things lie at offset {after[0]:#x}")
    if max([end, *(end for _, end in parts)]) != new.size:
        raise Wrong(name, "something is left behind its last part")


def _containers(
    source: OpenFile,
    old: Elf,
    new: OpenFile,
    new_elf: Elf,
    changes: Sequence[Rewrite],
    touched: Sequence[int],
) -> None:
    changed = {change.container.offset: change for change in changes}
    old_address, new_address = _Addresses(old), _Addresses(new_elf)
    for index in touched:
        before, after = old.sections[index], new_elf.sections[index]
        pairs = [list(containers_in(source, before)), list(containers_in(new, after))]
        if len(pairs[0]) != len(pairs[1]):
            raise Wrong(
                source.name, f"section {before.name} has {len(pairs[1])} fat binaries, not {len(pairs[0])}"
            )
        for was, now in zip(*pairs, strict=True):
            if old_address(was.offset) != new_address(now.offset):
                raise Wrong(source.name, f"the fat binary at offset {was.offset:#x} moved")
            change = changed.get(was.offset)
            if change:
                _container(source, new, change, now)
            elif len(was.images) != len(now.images):
                raise Wrong(source.name, f"the fat binary at offset {was.offset:#x} changed")


def _container(source: OpenFile, new: OpenFile, change: Rewrite, now: Container) -> None:
    where = f"the fat binary at offset {change.container.offset:#x}"
    expected = (change.stub.image,) if change.stub else change.images
    if now.size != change.size or len(now.images) != len(expected):
        raise Wrong(source.name, f"{where} has {len(now.images)} images, not {len(expected)}")
    if change.stub:
        if new.at(now.images[0].offset, len(change.stub.data)) != change.stub.data:
            raise Wrong(source.name, f"{where} has a broken stub")
    elif reason := images_wrong(source, change.images, new, now):
        raise Wrong(source.name, f"{where}: {reason}")


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
