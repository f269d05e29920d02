"""Where a loader's relocations, tables and symbols lead: what may not be changed for that.

Relocations and symbols are read by the section headers, as device code is. Packed relocations (`DT_RELR`)
are not read: no library with device code was seen that has them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from vllm_variants.fatbin.elf import PT_DYNAMIC, SHF_ALLOC, Elf, Section
from vllm_variants.fatbin.source import Source

_RELA, _DYNSYM = 4, 11
_RELOCATION_WORDS = 3  # place, symbol and type, addend
_SYMBOL = struct.Struct("<IBBHQQ")
_ABSOLUTE = 0xFFF1
_TO_ADDRESS = {62: (8, 37), 183: (1027, 1032)}
"""Per machine the types whose addend is an address: R_*_RELATIVE and R_*_IRELATIVE (the psABIs)."""
_ENTRY = struct.Struct("<QQ")
_TABLES = {3, 4, 5, 6, 7, 12, 13, 17, 23, 25, 26, 32, 36}
_TABLES |= {0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE}
"""The tags of a dynamic section whose value is an address that a loader follows: `DT_PLTGOT` to `DT_RELR`,
`DT_GNU_HASH`, and those of symbols' versions (gABI, "Dynamic Section"; glibc's elf.h)."""
_AT_ONCE = 1 << 16  # entries of a table


def pointers_into(source: Source, elf: Elf, ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The addresses within `ranges` (sorted, disjoint) that a relocation writes to or makes, a symbol has, or
    the dynamic section names.

    Where a range begins, a pointer may lead; nothing may be written there, and no table be.
    """
    if not ranges:
        return
    starts, lowest, highest = [start for start, _ in ranges], ranges[0][0], ranges[-1][1]

    def within(addresses: Sequence[int], begins: bool) -> Iterator[int]:
        for address in [a for a in addresses if lowest <= a < highest]:
            start, end = ranges[bisect_right(starts, address) - 1]
            if start + (not begins) <= address < end:
                yield address

    for segment in elf.segments:
        if segment.type == PT_DYNAMIC and segment.file_size:
            entries = source.at(segment.offset, segment.file_size // _ENTRY.size * _ENTRY.size)
            tables = [address for tag, address in _ENTRY.iter_unpack(entries) if tag in _TABLES]
            yield from within(tables, begins=True)
    makes_address = _TO_ADDRESS[elf.machine]
    for section in elf.sections:
        if not section.flags & SHF_ALLOC:
            continue
        if section.type == _RELA:
            for words in _blocks(source, section, 8 * _RELOCATION_WORDS):
                numbers = memoryview(words).cast("Q").tolist()
                yield from within(numbers[0::3], begins=True)
                near = [n for n, a in enumerate(numbers[2::3]) if lowest <= a < highest]
                made = [numbers[3 * n + 2] for n in near if numbers[3 * n + 1] in makes_address]
                yield from within(made, begins=False)
        elif section.type == _DYNSYM:
            for words in _blocks(source, section, _SYMBOL.size):
                values = [s[4] for s in _SYMBOL.iter_unpack(words) if 0 < s[3] < _ABSOLUTE]
                yield from within(values, begins=False)


def _blocks(source: Source, section: Section, entry: int) -> Iterator[bytes]:
    """A table's bytes, whole entries at a time."""
    end = section.offset + section.file_size // entry * entry
    for at in range(section.offset, end, entry * _AT_ONCE):
        yield source.at(at, min(entry * _AT_ONCE, end - at))
