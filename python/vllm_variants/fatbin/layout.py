"""Lay an ELF file out anew after pages of it are dropped.

Every virtual address stays. Dropped ranges begin on a page, counted from the file's start, and are
multiples of the alignment that the library's data needs (`Elf.alignment`, mostly one page). So
everything behind one moves towards the front by that multiple, `p_offset ≡ p_vaddr` (modulo the
alignment) holds by itself, and `p_align` stays, reduced to the alignment where it was more. A
`PT_LOAD` that loses pages is split around them. The program headers, of which there are now more,
go to the end of the file, on a page of their own: a loader must not take them for part of a mapped
segment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

from vllm_variants.fatbin.elf import (
    HEADER,
    PROGRAM_HEADER,
    PT_LOAD,
    PT_NULL,
    PT_PHDR,
    SECTION_HEADER,
    SMALLEST_PAGE,
    Elf,
    Section,
    Segment,
    content_end,
)


@dataclass(frozen=True)
class Hole:
    """A range of the source file, whole pages, that the new file does not have."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """In bytes."""
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

    Each is a multiple of what the library must stay aligned to. Holes under `smallest` bytes are not
    worth a segment; no more than the `most` largest are cut. A file of which two segments load the same
    bytes is not cut at all: what is dead in one may be alive in the other.
    """
    page, alignment = elf.page, elf.alignment
    by_offset = sorted((load for load in elf.loads if load.file_size), key=lambda load: load.offset)
    if any(before.end > after.offset for before, after in pairwise(by_offset)):
        return []
    loads = [load for load in by_offset if (load.address - load.offset) % page == 0]
    starts = [load.offset for load in loads]
    holes = []
    for start, end in dead:
        for load in loads[max(bisect_right(starts, start) - 1, 0) : bisect_right(starts, end)]:
            first = -(-max(start, load.offset) // page) * page
            last = first + (min(end, load.end) - first) // alignment * alignment
            if last - first >= smallest:
                holes.append(Hole(first, last))
    largest = sorted(holes, key=lambda hole: hole.size, reverse=True)[:most]
    return sorted(largest, key=lambda hole: hole.start)


def split(segment: Segment, holes: Sequence[Hole], shift: Shift, alignment: int) -> list[Segment]:
    """The parts of one `PT_LOAD` between the holes in it; the last keeps what has no file bytes (bss).

    They keep its `p_align`, or `alignment` bytes where it was more (or 0, which some loaders refuse).
    """
    align = min(segment.align or alignment, alignment)
    inside = [hole for hole in holes if segment.offset <= hole.start and hole.end <= segment.end]
    if not inside:
        return [replace(segment, offset=shift(segment.offset), align=align)]
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
            align=align,
        )
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]
    if parts and segment.memory_size > segment.file_size:
        tail = segment.address + segment.memory_size - parts[-1].address
        parts[-1] = replace(parts[-1], memory_size=tail)
    return parts


def without_bytes(segment: Segment, elf: Elf, shift: Shift, end: int) -> Segment:
    """A `PT_LOAD` without bytes in the new file, of which the source's first `end` bytes are the beginning.

    It may point anywhere in the source, also where a hole is cut or behind `end`. Its offset must have the
    address's place in a page all the same, in a page that the new file has (`needed_end`).
    """
    aligned = (segment.address - segment.offset) % elf.alignment == 0
    step = elf.alignment if aligned else elf.page
    place = segment.address % step
    last = min(shift(segment.offset), shift(end) - 1)
    return congruent(replace(segment, offset=place + max(last - place, 0) // step * step))


def needed_end(segments: Sequence[Segment], page: int) -> int:
    """How long a file must be at least, so that every `PT_LOAD` without bytes finds its page in it.

    Where memory begins within a page, a loader maps that page of the file and clears the rest of it, and
    the process dies if the file ends before (`SIGBUS`); a segment with bytes has the page of its last one.
    `page` is the largest that a kernel may use. A smaller one that it uses begins further back in the file.
    """
    begun = (s for s in segments if s.type == PT_LOAD and not s.file_size and s.address % page)
    return max((s.offset // SMALLEST_PAGE * SMALLEST_PAGE + 1 for s in begun), default=0)


def congruent(segment: Segment) -> Segment:
    """The segment with the largest `p_align` up to its own that its offset and its address keep."""
    align = max(segment.align, 1)
    while (segment.offset - segment.address) % align:
        align //= 2
    return replace(segment, align=segment.align if align == 1 else align)


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of the source file, to be written at `to` in the new file."""

    to: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Literal:
    """New bytes, to be written at `to` in the new file."""

    to: int
    data: bytes


@dataclass(frozen=True)
class Layout:
    """The headers of the new file, and which bytes of the source it has; `size` counts all of it.

    `holes` are missing from the source's first `end` bytes; `tail` is what follows those.
    """

    header: bytes
    program_headers_at: int
    program_headers: bytes
    section_headers_at: int
    section_headers: bytes
    size: int
    holes: tuple[Hole, ...]
    end: int
    tail: tuple[Copy, ...] = ()

    @cached_property
    def shift(self) -> Shift:
        """Where an offset of the source's first `end` bytes lies in the new file."""
        return Shift(self.holes)

    @cached_property
    def _hole_ends(self) -> list[int]:
        return [hole.end for hole in self.holes]

    def copies(self, start: int, end: int) -> Iterator[Copy]:
        """The source's bytes `[start, end)`, without holes and without what lies behind `self.end`."""
        end = min(end, self.end)
        for hole in self.holes[bisect_right(self._hole_ends, start) :]:
            if hole.start >= end:
                break
            if hole.start > start:
                yield Copy(self.shift(start), start, hole.start - start)
            start = hole.end
        if end > start:
            yield Copy(self.shift(start), start, end - start)


def lay_out(elf: Elf, header: bytes, holes: Sequence[Hole]) -> Layout:
    """The layout of `elf` without `holes`; `header` is the source's ELF header, 64 bytes.

    Without any hole, all stays where it is. With one, a `PT_PHDR` is made `PT_NULL`: the table is not
    in memory any more, and glibc then keeps a copy.
    """
    shift = Shift(holes)
    end = content_end(elf) if holes else elf.size
    segments = [part for segment in elf.segments for part in _moved(segment, elf, holes, shift, end)]
    moved = [
        replace(s, offset=shift(s.offset), size=shift(s.end) - shift(s.offset) if s.file_size else s.size)
        for s in elf.sections
    ]
    behind = max(shift(end), needed_end(segments, elf.page))
    table_at = -(-behind // elf.page) * elf.page if holes else elf.program_headers_at
    table = pack_segments(segments)
    size = table_at + len(table) if holes else elf.size
    shoff = shift(elf.section_headers_at) if elf.section_headers_at else 0
    fields = list(HEADER.unpack(header))
    fields[5], fields[6], fields[10] = table_at, shoff, len(segments)
    return Layout(HEADER.pack(*fields), table_at, table, shoff, pack_sections(moved), size, tuple(holes), end)


def _moved(segment: Segment, elf: Elf, holes: Sequence[Hole], shift: Shift, end: int) -> list[Segment]:
    """The program headers that one becomes."""
    if not holes:
        return [segment]
    on_page = (segment.address - segment.offset) % elf.page == 0  # what is not, no loader takes: it stays so
    if segment.type == PT_LOAD and not segment.file_size and on_page:
        return [without_bytes(segment, elf, shift, end)]
    if segment.type == PT_LOAD:
        return split(segment, holes, shift, elf.alignment)
    if segment.type == PT_PHDR:
        return [INERT]
    return [replace(segment, offset=shift(segment.offset))]


INERT = Segment(PT_NULL, 0, 0, 0, 0, 0, 0, 0)
"""What a `PT_PHDR` becomes where the program headers are not in memory any more."""


def pack_segments(segments: Sequence[Segment]) -> bytes:
    """The table of program headers."""
    return b"".join(PROGRAM_HEADER.pack(*_segment_fields(segment)) for segment in segments)


def pack_sections(sections: Sequence[Section]) -> bytes:
    """The table of section headers."""
    return b"".join(SECTION_HEADER.pack(*_section_fields(section)) for section in sections)


def _segment_fields(s: Segment) -> tuple[int, ...]:
    return s.type, s.flags, s.offset, s.address, s.physical, s.file_size, s.memory_size, s.align


def _section_fields(s: Section) -> tuple[int, ...]:
    return (
        s.name_offset, s.type, s.flags, s.address, s.offset, s.size, s.link, s.info, s.align, s.entry_size,
    )  # fmt: skip
