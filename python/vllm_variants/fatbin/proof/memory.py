"""Prove what is in memory: the bytes of before at every address, but for the fat binaries that change."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.elf import Elf, Section, Segment
from vllm_variants.fatbin.proof.places import (
    Addresses,
    Wrong,
    file_ranges,
    first_difference,
    loaded_sections_address,
    loaded_table_address,
)
from vllm_variants.fatbin.proof.pointers import pointers_into
from vllm_variants.fatbin.rewrite import DEVICE_SECTIONS, Rewrite
from vllm_variants.fatbin.source import OpenFile

_RELRO = 0x6474E552
"""`PT_GNU_RELRO`: addresses that become read-only; nobody reads what is there because of it."""
Range = tuple[int, int]
Found = Mapping[int, Sequence[Container]]
"""The containers of the source, by the number of their section."""


def changed_ranges(name: str, old: Elf, changes: Sequence[Rewrite], found: Found) -> list[Range]:
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


def require_apart(source: OpenFile, old: Elf, edits: Sequence[Range], found: Found) -> None:
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
    address_of = Addresses(source.name, old)
    ranges = [(address_of(start), address_of(start) + end - start) for start, end in edits]
    if (address := next(pointers_into(source, old, ranges), None)) is not None:
        raise Wrong(
            source.name, f"something that a loader follows leads into a fat binary that changes: {address:#x}"
        )


def require_bytes(source: OpenFile, old: Elf, new: OpenFile, new_elf: Elf, changed: Sequence[Range]) -> None:
    """Walk the new file's segments by address and compare each with the source, around the changes."""
    address_of = Addresses(source.name, old)
    in_changes = sorted((address_of(start), address_of(start) + end - start) for start, end in changed)
    edits = [*in_changes, (address_of(0), address_of(0) + elfs.HEADER.size)]  # see `_header`
    if (table := loaded_table_address(new_elf)) is not None and table == loaded_table_address(old):
        edits.append((table, table + len(old.segments) * elfs.PROGRAM_HEADER.size))  # see `segments`
    if (table := loaded_sections_address(new_elf)) is not None and table == loaded_sections_address(old):
        edits.append((table, table + len(old.sections) * elfs.SECTION_HEADER.size))  # see `sections`
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
            for old_at, length in file_ranges(source.name, old, at, until):
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


def _gaps(name: str, old: Sequence[Range], new: Sequence[Range], edits: Sequence[Range]) -> None:
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
