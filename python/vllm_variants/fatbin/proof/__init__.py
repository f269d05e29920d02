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
  for each device that is what its driver would have chosen (`container`);
- where unmapped parts go, no two things in the file overlap, and nothing is left behind the last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Elf
from vllm_variants.fatbin.proof import container, memory, sections, segments
from vllm_variants.fatbin.proof.memory import Found
from vllm_variants.fatbin.proof.places import Addresses, Wrong
from vllm_variants.fatbin.rewrite import Rewrite, containers_in
from vllm_variants.fatbin.source import Malformed, OpenFile
from vllm_variants.model.capability import Capability

__all__ = ["Wrong", "verify"]


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
    segments.require_segments(source, old_elf, new, new_elf)
    found = {
        index: list(containers_in(source, old_elf.sections[index]))
        for index in sections.that_change(old_elf, changes)
    }
    edits = memory.changed_ranges(source.name, old_elf, changes, found)
    memory.require_apart(source, old_elf, edits, found)
    memory.require_bytes(source, old_elf, new, new_elf, edits)
    sections.require_sections(source, old_elf, new, new_elf, found, unread or ())
    _containers(source, old_elf, new, new_elf, changes, found, devices)
    if unread is not None:
        sections.require_disjoint(source.name, new_elf)


def _header(source: OpenFile, new: OpenFile) -> None:
    """The ELF header may differ in where its tables are and how many segments there are."""
    old_fields, new_fields = (
        list(elfs.HEADER.unpack(each.at(0, elfs.HEADER.size))) for each in (source, new)
    )
    for index in (5, 6, 10):
        old_fields[index] = new_fields[index] = 0
    if old_fields != new_fields:
        raise Wrong(source.name, "the ELF header changed in more than where its tables are")


def _containers(
    source: OpenFile,
    old: Elf,
    new: OpenFile,
    new_elf: Elf,
    changes: Sequence[Rewrite],
    found: Found,
    devices: Sequence[Capability],
) -> None:
    changed = {change.container.offset: change for change in changes}
    name, old_address, new_address = (
        source.name,
        Addresses(source.name, old),
        Addresses(source.name, new_elf),
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
            if change and (reason := container.wrong(source, was, change, new, now, devices)):
                raise Wrong(name, f"{where}: {reason}")
            if not change and len(was.images) != len(now.images):
                raise Wrong(name, f"{where} changed")
