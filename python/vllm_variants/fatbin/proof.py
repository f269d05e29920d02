"""Prove a slimmed file against its source, reading both anew.

What must hold:
- segments are parts of those that were, aligned as their data needs, in order and disjoint;
  what says where the program headers are in memory is true or gone;
- every address that had file bytes has the same bytes, except in the headers and in the containers
  that were rewritten; what is missing, with bytes or without, lies in the dead part of one of those;
- nothing else lies in those containers, and no relocation, table or symbol leads into one;
- every section has its bytes where its header says, and code in memory is what the section says; or it
  is one of those that go, and then nothing loads it, nothing links to it and its header is zero;
- each container stands in one piece at its old address and holds exactly the images it should: byte for
  byte, or the same code once decompressed, or a cubin with the kernels of the PTX that it came from;
  for each device that is what its driver would have chosen (`container_proof`);
- where unmapped parts go, no two things in the file overlap, and nothing is left behind the last.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise

from vllm_variants.errors import AuditError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.container_proof import wrong as container_wrong
from vllm_variants.fatbin.elf import Elf, Section, Segment
from vllm_variants.fatbin.pointers import pointers_into
from vllm_variants.fatbin.rewrite import (
    DEVICE_SECTIONS,
    Rewrite,
    containers_in,
    device_sections,
    resource_sections,
)
from vllm_variants.fatbin.source import Malformed, OpenFile
from vllm_variants.model.capability import Capability

_BLOCK = 1 << 18
_RELRO = 0x6474E552
"""`PT_GNU_RELRO`: addresses that become read-only; nobody reads what is there because of it."""


class Wrong(AuditError):
    """The new file is not what it must be; the old one was not replaced."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"{name}: slimming would have broken it: {what}", hint="report this library; it was kept"
        )


def verify(
    source: OpenFile,
    new: OpenFile,
    changes: Sequence[Rewrite],
    unread: Collection[int] | None = None,
    devices: Sequence[Capability] = (),
) -> None:
    """Raise `Wrong` or `Malformed` unless the file `new` is `source` with exactly `changes` made.

    `unread` are the sections that went, by number; None: what no segment maps stays. `devices` are those
    that must find their code; without any, no image may be gone.
    """
    old_elf = elfs.parse(source)
    try:
        new_elf = elfs.parse(new)
    except Malformed as error:
        raise Wrong(source.name, f"the new file is malformed: {error.message}") from error
    _header(source, new)
    _segments(source, old_elf, new, new_elf)
    found = {
        index: list(containers_in(source, old_elf.sections[index])) for index in _touched(old_elf, changes)
    }
    edits = _edits(source.name, old_elf, changes, found)
    _apart(source, old_elf, edits, found)
    _bytes(source, old_elf, new, new_elf, edits)
    _sections(source, old_elf, new, new_elf, found, unread or ())
    _containers(source, old_elf, new, new_elf, changes, found, devices)
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
    _other_segments(source, old, new_file, new)
    table, end = _program_headers(new)
    in_place, before_that = _loaded_table_address(new), _loaded_table_address(old)
    told = [[_placed(s) for s in each.segments if s.type == elfs.PT_PHDR] for each in (old, new)]
    if told[1] and (in_place != before_that or told[0] != told[1]):
        raise Wrong(name, "a PT_PHDR says that the program headers are where they are not")
    if in_place is not None and in_place == before_that:
        return
    if before_that is not None and elfs.is_program(source, old):
        raise Wrong(name, "a program would not find its program headers in memory")
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
    return _Addresses("", elf)(start) if start and not shared and _is_loaded(elf, start, end) else None


def _is_loaded(elf: Elf, start: int, end: int) -> bool:
    return any(load.offset <= start and end <= load.end for load in elf.loads)


def _loaded_table_address(elf: Elf) -> int | None:
    """Where the program headers are in memory; None where they are not."""
    start, end = _program_headers(elf)
    return _Addresses("", elf)(start) if _is_loaded(elf, start, end) else None


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


_Range = tuple[int, int]
_Found = Mapping[int, Sequence[Container]]
"""The containers of the source, by the number of their section."""


def _edits(name: str, old: Elf, changes: Sequence[Rewrite], found: _Found) -> list[_Range]:
    """The file ranges of the source, in order, that changes may change: each from its container on to where
    the next one, or its section, begins or ends; among other data the container alone."""
    allowed: dict[int, tuple[Container, int]] = {}
    for index, containers in found.items():
        section = old.sections[index]
        ends = [after.offset for after in containers[1:]] + [section.end]
        if section.name not in DEVICE_SECTIONS:
            ends = [container.end for container in containers]
        allowed |= {c.offset: (c, end) for c, end in zip(containers, ends, strict=False)}
    edits = []
    for change in changes:
        container, end = allowed.get(change.container.offset, (None, 0))
        if container != change.container:
            raise Wrong(name, f"there is no such fat binary at offset {change.container.offset:#x}")
        edits.append((change.container.offset, end))
    return sorted(edits)


def _apart(source: OpenFile, old: Elf, edits: Sequence[_Range], found: _Found) -> None:
    """Nothing but containers may lie in what changes, and nothing that a loader follows may lead there."""
    starts = [start for start, _ in edits]

    def overlaps(part: Section | Segment) -> bool:
        index = bisect_left(starts, part.end) - 1
        return bool(part.file_size) and index >= 0 and edits[index][1] > part.offset

    for index, section in enumerate(old.sections):
        if section.flags & elfs.SHF_ALLOC and index not in found and overlaps(section):
            raise Wrong(source.name, f"section {section.name} lies in a fat binary that changes")
    for segment in old.segments:
        if segment.type not in (elfs.PT_LOAD, elfs.PT_NULL, _RELRO) and overlaps(segment):
            raise Wrong(
                source.name, f"the segment of type {segment.type:#x} lies in a fat binary that changes"
            )
    if not edits:
        return
    address_of = _Addresses(source.name, old)
    ranges = [(address_of(start), address_of(start) + end - start) for start, end in edits]
    if (address := next(pointers_into(source, old, ranges), None)) is not None:
        raise Wrong(
            source.name, f"something that a loader follows leads into a fat binary that changes: {address:#x}"
        )


def _bytes(source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, changed: Sequence[_Range]) -> None:
    """Walk the new file's segments by address and compare each with the source, around the changes."""
    address_of = _Addresses(source.name, old)
    in_changes = sorted((address_of(start), address_of(start) + end - start) for start, end in changed)
    edits = [*in_changes, (address_of(0), address_of(0) + elfs.HEADER.size)]  # see _header
    if (table := _loaded_table_address(new_elf)) is not None and table == _loaded_table_address(old):
        edits.append((table, table + len(old.segments) * elfs.PROGRAM_HEADER.size))  # see _segments
    if (table := _loaded_sections_address(new_elf)) is not None and table == _loaded_sections_address(old):
        edits.append((table, table + len(old.sections) * elfs.SECTION_HEADER.size))  # see _sections
    edits.sort()
    starts = [start for start, _ in edits]
    for load in new_elf.loads:
        at, end = load.address, load.address + load.file_size
        while at < end:
            index = bisect_right(starts, at) - 1
            if index >= 0 and at < edits[index][1]:
                at = min(end, edits[index][1])
                continue
            until = min(end, starts[index + 1] if index + 1 < len(starts) else end)
            for old_at, length in _file_ranges(source.name, old, at, until):
                offset = load.offset + at - load.address
                if (wrong := first_difference(source, old_at, new, offset, length)) is not None:
                    raise Wrong(source.name, f"the byte at address {at + wrong:#x} changed")
                at += length
    for size in (_file_size, _memory_size):
        before, after = ([(s.address, s.address + size(s)) for s in each.loads] for each in (old, new_elf))
        _gaps(source.name, before, after, in_changes)


def _file_size(load: Segment) -> int:
    return load.file_size


def _memory_size(load: Segment) -> int:
    return load.memory_size


def _gaps(name: str, old: Sequence[_Range], new: Sequence[_Range], edits: Sequence[_Range]) -> None:
    """Addresses that `old` has and `new`, which is in order, has not must lie in an edit."""
    ends = [0, *(end for _, end in new)]
    begins = [*(start for start, _ in new), 1 << 64]
    starts = [start for start, _ in edits]
    for first, last in old:
        for gap_start, gap_end in zip(ends, begins, strict=True):
            start, end = max(gap_start, first), min(gap_end, last)
            if start < end:
                index = bisect_right(starts, start) - 1
                if index < 0 or end > edits[index][1]:
                    raise Wrong(name, f"what is needed was dropped at address {start:#x}")


class _Addresses:
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


def _file_ranges(name: str, elf: Elf, address: int, end: int) -> Iterator[tuple[int, int]]:
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


def _touched(old: Elf, changes: Sequence[Rewrite]) -> list[int]:
    """The sections, by index, that hold a change; device sections in memory all count."""
    starts = [change.container.offset for change in changes]
    kept = {section.offset for section in device_sections(old) if _begins_in_memory(old, section)}
    for section in resource_sections(old):
        if bisect_right(starts, section.end) > bisect_right(starts, section.offset - 1):
            kept.add(section.offset)
    return [
        index for index, section in enumerate(old.sections) if section.file_size and section.offset in kept
    ]


def _begins_in_memory(elf: Elf, section: Section) -> bool:
    return any(load.offset <= section.offset < load.end for load in elf.loads)


def _sections(
    source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, touched: Collection[int], unread: Collection[int]
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
        if after.size != (_left_size(source.name, old, before, new_elf) if index in touched else before.size):
            raise Wrong(source.name, f"section {before.name} changed its size")
        if index in touched or not before.file_size:
            continue
        if before.flags & elfs.SHF_ALLOC:
            _placed_section(source, old, before, new, new_elf, after)
        elif first_difference(source, before.offset, new, after.offset, before.size) is not None:
            raise Wrong(source.name, f"section {before.name} changed")


def _left_size(name: str, old: Elf, before: Section, new: Elf) -> int:
    """How many bytes the new file has of a section's addresses; it begins and ends in memory."""
    address_of = _Addresses(name, old)
    start, end = address_of(before.offset), address_of(before.end - 1) + 1
    parts = ((max(load.address, start), min(load.address + load.file_size, end)) for load in new.loads)
    return sum(max(last - first, 0) for first, last in parts)


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
    found: _Found,
    devices: Sequence[Capability],
) -> None:
    changed = {change.container.offset: change for change in changes}
    name, old_address, new_address = (
        source.name,
        _Addresses(source.name, old),
        _Addresses(source.name, new_elf),
    )
    for index, before in found.items():
        try:
            after = list(containers_in(new, new_elf.sections[index]))
        except Malformed as error:
            raise Wrong(name, f"the new file is malformed: {error.message}") from error
        if len(before) != len(after):
            section = old.sections[index].name
            raise Wrong(name, f"section {section} has {len(after)} fat binaries, not {len(before)}")
        for was, now in zip(before, after, strict=True):
            where = f"the fat binary at offset {was.offset:#x}"
            if old_address(was.offset) != new_address(now.offset, now.size):
                raise Wrong(name, f"{where} moved")
            change = changed.get(was.offset)
            if change and (reason := container_wrong(source, was, change, new, now, devices)):
                raise Wrong(name, f"{where}: {reason}")
            if not change and len(was.images) != len(now.images):
                raise Wrong(name, f"{where} changed")


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
