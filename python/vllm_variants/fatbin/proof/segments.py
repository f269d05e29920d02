"""Prove the segments: parts of those that were, which a loader accepts and maps as it did before."""

from __future__ import annotations

from itertools import pairwise

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Elf, Segment
from vllm_variants.fatbin.proof.places import (
    Wrong,
    first_difference,
    loaded_table_address,
    program_headers_range,
)
from vllm_variants.fatbin.source import OpenFile


def require_segments(source: OpenFile, old: Elf, new_file: OpenFile, new: Elf) -> None:
    """Raise `Wrong` unless a loader finds all that it found, and the program headers."""
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
    table, end = program_headers_range(new)
    in_place, before_that = loaded_table_address(new), loaded_table_address(old)
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
