"""Prove the sections: each has its bytes where its header says, or is gone with nothing that needs it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Elf, Section
from vllm_variants.fatbin.proof.places import (
    Addresses,
    Wrong,
    first_difference,
    is_loaded,
    program_headers_range,
)
from vllm_variants.fatbin.rewrite import Rewrite, device_sections, resource_sections
from vllm_variants.fatbin.source import OpenFile


def that_change(old: Elf, changes: Sequence[Rewrite]) -> list[int]:
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


def require_sections(
    source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, touched: Collection[int], unread: Collection[int]
) -> None:
    """Raise `Wrong` unless every section is what it was, but for those in `unread`, which went."""
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
    address_of = Addresses(name, old)
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


def require_disjoint(name: str, new: Elf) -> None:
    """What lies behind the loaded bytes: kept sections and tables, one after the other to the end."""
    end = max((load.end for load in new.loads if load.file_size), default=0)
    parts = [(s.offset, s.end) for s in new.sections if s.file_size and s.offset >= end]
    if new.sections:
        table = new.section_headers_at
        parts.append((table, table + len(new.sections) * elfs.SECTION_HEADER.size))
    if not is_loaded(new, *program_headers_range(new)):
        parts.append(program_headers_range(new))
    for before, after in pairwise([(0, end), *sorted(parts)]):
        if before[1] > after[0]:
            raise Wrong(name, f"two things lie at offset {after[0]:#x}")
    if max([end, *(end for _, end in parts)]) != new.size:
        raise Wrong(name, "something is left behind its last part")
