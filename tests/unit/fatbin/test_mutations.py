"""A slimmer that errs in one place, and libraries made to mislead it: the proof lets none through."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from making import AARCH64, X86_64, Made, capabilities, container, cubin, library, ptx, section

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import layout, planning, rewrite, strip
from vllm_variants.fatbin import library as writer
from vllm_variants.fatbin.elf import PROGRAM_HEADER, SECTION_HEADER, Elf, Segment
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.proof import Wrong, verify
from vllm_variants.fatbin.rewrite import Rewrite
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import OpenFile, opened

HOPPER = capabilities("9.0")
PAGE = 0x1000
FATBIN = section(
    [cubin("sm_80", 200_000), cubin("sm_90a", 80_000), cubin("sm_90", 800)],
    [cubin("sm_100", 150_000)],
    [cubin("sm_90", 9000)],
    [cubin("sm_90", 40_000), cubin("sm_80", 40_000)],
)
Patch = pytest.MonkeyPatch


@pytest.fixture
def made(tmp_path: Path) -> Path:
    resource = b"table" * 9 + container(cubin("sm_120", 90_000)) + b"more"
    return library(tmp_path / "made.so", FATBIN, more={".cask_resource": resource})


def refused(path: Path, match: str, rules: Rules | None = None) -> None:
    before = path.read_bytes()
    with pytest.raises(Wrong, match=match):
        slim_file(path, HOPPER, rules)
    assert path.read_bytes() == before


def parsed(path: Path) -> Elf:
    with opened(path) as source:
        return elfs.parse(source)


def tampered(monkeypatch: Patch, tamper: Callable[[bytearray, Elf], None]) -> None:
    """Let the writer write, then change what it wrote before the proof."""
    fill = writer._fill

    def wrong(source: OpenFile, plan: planning.FilePlan, descriptor: int) -> None:
        fill(source, plan, descriptor)
        new = Path(f"/proc/self/fd/{descriptor}")
        headers, data = parsed(new), bytearray(new.read_bytes())
        tamper(data, headers)
        os.pwrite(descriptor, data, 0)

    monkeypatch.setattr(writer, "_fill", wrong)


def set_segment(data: bytearray, elf: Elf, index: int, **fields: int) -> None:
    segment = replace(elf.segments[index], **fields)
    at = elf.program_headers_at + index * PROGRAM_HEADER.size
    data[at : at + PROGRAM_HEADER.size] = layout.pack_segments([segment])


def set_section(path: Path, name: str, **fields: int) -> None:
    """Change a section's header in a library made by hand."""
    elf, data = parsed(path), bytearray(path.read_bytes())
    index = next(i for i, s in enumerate(elf.sections) if s.name == name)
    at = elf.section_headers_at + index * SECTION_HEADER.size
    data[at : at + SECTION_HEADER.size] = layout.pack_sections([replace(elf.sections[index], **fields)])
    path.write_bytes(data)


def third_segment(path: Path, segment: Segment, content: bytes = b"") -> None:
    """Put `segment` in the place of the last program header, and `content` at the file's end."""
    data = bytearray(path.read_bytes()) + content
    PROGRAM_HEADER.pack_into(data, 64 + 2 * PROGRAM_HEADER.size, *layout._segment_fields(segment))
    path.write_bytes(data)


def section_of(path: Path, name: str) -> elfs.Section:
    return next(s for s in parsed(path).sections if s.name == name)


def plans(monkeypatch: Patch, change: Callable[[list[Rewrite]], list[Rewrite]]) -> None:
    """Let `change` have its way with the containers of the device section."""
    honest = rewrite.rewrites
    monkeypatch.setattr(planning, "rewrites", lambda *given: change(list(honest(*given))))


def keeps(monkeypatch: Patch, change: Callable[[Any], Any]) -> None:
    """Let `change` have its way with the list of images that stay in a container."""
    honest = rewrite.kept_images
    monkeypatch.setattr(rewrite, "kept_images", lambda *given: change(honest(*given)))


# Memory and files


def test_pages_cut_from_memory_that_the_file_still_has(made: Path, monkeypatch: Patch) -> None:
    def tamper(data: bytearray, elf: Elf) -> None:
        """The first hole one page earlier in memory; whoever reads the file finds all in its place."""
        first, second = elf.segments[0], elf.segments[1]
        size = first.file_size - PAGE
        set_segment(data, elf, 0, file_size=size, memory_size=size)
        size, at = second.file_size + PAGE, second.address - PAGE
        moved = {"offset": second.offset - PAGE, "address": at, "physical": at}
        set_segment(data, elf, 1, file_size=size, memory_size=size, **moved)

    tampered(monkeypatch, tamper)
    refused(made, "no segment has all")


def test_memory_without_bytes_that_is_lost_from_a_segment(made: Path, monkeypatch: Patch) -> None:
    size = made.stat().st_size
    at, address = size + -size % PAGE, 1 << 24
    third_segment(made, Segment(1, 6, at, address, address, 99, 99, PAGE), bytes(-size % PAGE) + b"t" * 99)

    def tamper(data: bytearray, elf: Elf) -> None:
        index = next(i for i, s in enumerate(elf.segments) if s.memory_size > s.file_size)
        set_segment(data, elf, index, memory_size=elf.segments[index].file_size)

    tampered(monkeypatch, tamper)
    refused(made, "what is needed was dropped")


def test_a_segment_without_bytes_that_is_lost(made: Path, monkeypatch: Patch) -> None:
    data = parsed(made).segments[1]
    at = data.address // PAGE * PAGE - 4 * PAGE
    third_segment(made, data)
    content = bytearray(made.read_bytes())
    bare = Segment(1, 6, 0, at, at, 0, 2 * PAGE, PAGE)
    PROGRAM_HEADER.pack_into(content, 64 + PROGRAM_HEADER.size, *layout._segment_fields(bare))
    made.write_bytes(content)

    def tamper(data: bytearray, elf: Elf) -> None:
        set_segment(data, elf, next(i for i, s in enumerate(elf.segments) if s.address == at), type=0)

    tampered(monkeypatch, tamper)
    refused(made, "what is needed was dropped")


@pytest.mark.parametrize("there_before", [True, False])
def test_a_header_that_says_where_the_program_headers_were(
    made: Path, monkeypatch: Patch, there_before: bool
) -> None:
    table = Segment(6, 4, 64, 64, 64, 3 * PROGRAM_HEADER.size, 3 * PROGRAM_HEADER.size, 8)
    if there_before:
        third_segment(made, table)
        monkeypatch.setattr(layout, "INERT", table)
    else:
        fields = {"offset": 64, "address": 64, "physical": 64, "file_size": 168, "memory_size": 168}
        tampered(
            monkeypatch, lambda data, elf: set_segment(data, elf, len(elf.segments) - 1, type=6, **fields)
        )
    refused(made, "PT_PHDR" if there_before else "other than PT_LOAD")


def test_a_program_whose_headers_leave_memory(tmp_path: Path, monkeypatch: Patch) -> None:
    path = library(tmp_path / "program", FATBIN, kind=elfs.ET_EXEC)
    assert not slim_file(path, HOPPER).changed
    monkeypatch.setattr(planning, "is_program", lambda source, elf: False)
    refused(path, "a program would not find its program headers")


def test_more_program_headers_in_the_old_ones_place(made: Path, monkeypatch: Patch) -> None:
    honest = strip.lay_out

    def in_place(*given: Any) -> layout.Layout:
        made, elf = honest(*given), given[0]
        fields = list(elfs.HEADER.unpack(made.header))
        fields[5] = elf.program_headers_at
        size = made.section_headers_at + len(made.section_headers)
        return replace(
            made, header=elfs.HEADER.pack(*fields), program_headers_at=elf.program_headers_at, size=size
        )

    monkeypatch.setattr(strip, "lay_out", in_place)
    refused(made, "the byte at address 0xe8 changed", Rules(keep_symbols=False))


def test_program_headers_in_a_page_that_a_loader_maps(made: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(strip, "_aligned", lambda offset, align: -(-offset // 8) * 8)
    refused(made, "the program headers lie in a mapped page", Rules(keep_symbols=False))


def test_a_segment_that_is_not_loaded_and_lies_elsewhere(made: Path, monkeypatch: Patch) -> None:
    comment = section_of(made, ".comment")
    third_segment(made, Segment(4, 4, comment.offset, 0, 0, 32, 32, 1))

    def tamper(data: bytearray, elf: Elf) -> None:
        index = next(i for i, s in enumerate(elf.segments) if s.type == 4)
        set_segment(data, elf, index, offset=elf.segments[index].offset + 8)

    tampered(monkeypatch, tamper)
    refused(made, "the bytes of the segment of type 0x4 changed")


def test_bytes_where_memory_was_zero(made: Path, monkeypatch: Patch) -> None:
    def tamper(data: bytearray, elf: Elf) -> None:
        index = next(i for i, s in enumerate(elf.segments) if s.memory_size > s.file_size)
        set_segment(data, elf, index, file_size=elf.segments[index].file_size + 16)

    tampered(monkeypatch, tamper)
    refused(made, r"made\.so: .* had no bytes before")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda data, elf: set_segment(data, elf, 0, offset=1 << 40),
        lambda data, elf: data.__setitem__(elf.sections[2].offset, 0),  # a container's magic
    ],
)
def test_a_new_file_that_contradicts_itself(made: Path, monkeypatch: Patch, tamper: Any) -> None:
    tampered(monkeypatch, tamper)
    refused(made, "the new file is malformed")


def test_no_segment_at_all(made: Path, monkeypatch: Patch) -> None:
    def tamper(data: bytearray, elf: Elf) -> None:
        for index, segment in enumerate(elf.segments):
            set_segment(data, elf, index, type=0 if segment.type == 1 else segment.type)

    tampered(monkeypatch, tamper)
    refused(made, "what is needed was dropped")


@pytest.mark.parametrize("name", [".bss", ".nv_fatbin", ".cask_resource"])
def test_another_size_in_a_sections_header(made: Path, monkeypatch: Patch, name: str) -> None:
    def tamper(data: bytearray, elf: Elf) -> None:
        index = next(i for i, s in enumerate(elf.sections) if s.name == name)
        data[elf.section_headers_at + index * SECTION_HEADER.size + 32] ^= 1

    tampered(monkeypatch, tamper)
    refused(made, f"section {name} changed its size")


# What lies in a container, and what leads there


def dead_bytes(path: Path) -> tuple[int, int]:
    """Offset and address of bytes in the last image of the device section, which goes."""
    found = section_of(path, ".nv_fatbin")
    return found.end - 400, found.address + found.size - 400


def test_a_section_in_an_image_that_goes(made: Path) -> None:
    offset, address = dead_bytes(made)
    set_section(made, ".rodata", offset=offset, address=address, size=300)
    refused(made, r"section \.rodata lies in a fat binary that changes")


@pytest.mark.parametrize("kind", [2, 4, 7, 0x6474E550, 0x6474E553])  # dynamic, note, TLS, unwinding, property
def test_a_segment_in_an_image_that_goes(made: Path, kind: int) -> None:
    offset, address = dead_bytes(made)
    third_segment(made, Segment(kind, 4, offset, address, address, 96, 96, 8))
    refused(made, f"the segment of type {kind:#x} lies in a fat binary that changes")


def test_addresses_that_become_read_only_may_enclose_device_code(made: Path) -> None:
    first = section_of(made, ".nv_fatbin")
    third_segment(made, Segment(0x6474E552, 4, first.offset, first.address, first.address, 9999, 9999, 1))
    assert slim_file(made, HOPPER).changed


def with_table(path: Path, entry: bytes, kind: int, machine: int) -> Path:
    """A library with a table of one entry in memory, of section type `kind`."""
    made = library(path, FATBIN, more={".table": entry}, machine=machine)
    set_section(made, ".table", type=kind)
    return made


@pytest.mark.parametrize("machine", [X86_64, AARCH64])
@pytest.mark.parametrize(
    ("make", "inside", "leads"),
    [
        (lambda at, made: struct.pack("<QQQ", at, made, 0), 0, True),
        (lambda at, made: struct.pack("<QQQ", 0, made, at), 0, False),
        (lambda at, made: struct.pack("<QQQ", 0, made, at), 64, True),
        (lambda at, made: struct.pack("<QQQ", 0, 1 << 32 | 1, at), 64, False),  # beside a symbol's value
        (lambda at, made: struct.pack("<IBBHQQ", 0, 0, 0, 2, at, 0), 0, False),
        (lambda at, made: struct.pack("<IBBHQQ", 0, 0, 0, 2, at, 0), 99, True),
        (lambda at, made: struct.pack("<IBBHQQ", 0, 0, 0, 0, at, 0), 99, False),  # not defined here
    ],
)
def test_relocations_and_symbols_may_lead_to_where_a_container_begins_and_not_into_it(
    tmp_path: Path, make: Callable[[int, int], bytes], inside: int, leads: bool, machine: int
) -> None:
    relative = {X86_64: 8, AARCH64: 1027}[machine]
    blank = make(0, relative)
    kind = 4 if len(blank) == 24 and blank[4:8] != struct.pack("<BBH", 0, 0, 2) else 11
    start = section_of(library(tmp_path / "a.so", FATBIN, machine=machine), ".nv_fatbin").address
    path = with_table(tmp_path / "a.so", make(start + inside, relative), kind, machine)
    if leads:
        refused(path, f"leads into a fat binary that changes: {start + inside:#x}")
    else:
        assert slim_file(path, HOPPER).changed


def test_a_large_image_is_compared_piece_by_piece(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_80", 90_000), cubin("sm_90", 5_000_000)]))
    longest = 0

    class Watched(OpenFile):
        def at(self, offset: int, length: int) -> bytes:
            nonlocal longest
            longest = max(longest, length)
            return super().at(offset, length)

    new = tmp_path / "new.so"
    assert slim_file(path, HOPPER, to=new).changed
    with opened(path) as source, opened(new) as file:
        plan = planning.plan_file(source, elfs.parse(source), HOPPER, Rules(), {}, SimpleNamespace())  # type: ignore[arg-type]
        verify(
            Watched("old", source.descriptor), Watched("new", file.descriptor), plan.changes, devices=HOPPER
        )
    assert 0 < longest < 3_000_000


@pytest.mark.parametrize(
    ("tag", "leads"), [(5, True), (25, True), (0x6FFFFEF5, True), (10, False), (1, False)]
)
def test_a_table_of_the_loader_in_an_image_that_goes(made: Path, tag: int, leads: bool) -> None:
    _, address = dead_bytes(made)
    data = section_of(made, ".data")
    content = bytearray(made.read_bytes())
    struct.pack_into("<QQQQ", content, data.offset, tag, address, 0, 0)
    made.write_bytes(content)
    third_segment(made, Segment(2, 6, data.offset, data.address, data.address, 32, 32, 8))
    if leads:
        refused(made, f"leads into a fat binary that changes: {address:#x}")
    else:
        assert slim_file(made, HOPPER).changed


# Which images there are


def test_a_change_that_ends_behind_its_container(made: Path, monkeypatch: Patch) -> None:
    plans(monkeypatch, lambda all: [*all[:-1], replace(all[-1], dead_end=all[-1].dead_end + 64)])
    refused(made, "the byte at address")


def test_images_of_another_container(made: Path, monkeypatch: Patch) -> None:
    plans(monkeypatch, lambda all: [replace(all[0], images=all[2].images), *all[1:]])
    refused(made, "it has an image of another fat binary")


def test_a_change_of_what_is_no_container(made: Path, monkeypatch: Patch) -> None:
    def shifted(all: list[Rewrite]) -> list[Rewrite]:
        moved = replace(all[0].container, size=all[0].container.size + 8)
        return [replace(all[0], container=moved), *all[1:]]

    plans(monkeypatch, shifted)
    refused(made, "there is no such fat binary")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda kept: kept[1:], "its 9.0a image went, which 9.0 needs"),
        (lambda kept: [], "its 9.0a image went, which 9.0 needs"),
        (lambda kept: kept[::-1], "in another order"),
        (lambda kept: [kept[0]] * len(kept) if kept else [], "one is there twice"),
    ],
)
def test_an_image_that_the_device_needs(made: Path, monkeypatch: Patch, change: Any, match: str) -> None:
    keeps(monkeypatch, change)
    refused(made, match)


def test_an_image_of_an_unknown_kind(tmp_path: Path, monkeypatch: Patch) -> None:
    unknown = Made("sm_50", b"lto" * 30_000, code=8)
    path = library(tmp_path / "made.so", section([cubin("sm_90"), unknown]))
    keeps(monkeypatch, lambda kept: [image for image in kept if image.known])
    refused(path, "an image of an unknown kind went")


def test_ptx_that_one_of_two_devices_compiles(tmp_path: Path, monkeypatch: Patch) -> None:
    path = library(
        tmp_path / "made.so", section([cubin("sm_90"), ptx("compute_90", 90_000), cubin("sm_80", 90_000)])
    )
    keeps(monkeypatch, lambda kept: kept[:1])
    with pytest.raises(Wrong, match=r"its 9\.0 image went, which 12\.0 needs"):
        slim_file(path, capabilities("9.0", "12.0"))


def test_a_container_among_other_data_that_is_needed(tmp_path: Path, monkeypatch: Patch) -> None:
    resource = b"table" * 9 + container(cubin("sm_90", 90_000)) + b"more"
    path = library(tmp_path / "made.so", FATBIN, more={".cask_resource": resource})

    def all_to_stubs(source: Any, section: Any, *given: Any) -> Iterator[Rewrite]:
        for found in rewrite.containers_in(source, section):
            if stub := rewrite.stub_for(source, found):
                yield Rewrite(found, (), stub, found.end)

    monkeypatch.setattr(planning, "resource_rewrites", all_to_stubs)
    refused(path, "its 9.0 image went, which 9.0 needs")


def test_without_devices_every_image_must_be_there(made: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.so"
    slim_file(made, HOPPER, to=new)
    with opened(made) as source, opened(new) as file:
        plan = planning.plan_file(source, elfs.parse(source), HOPPER, Rules(), {}, SimpleNamespace())  # type: ignore[arg-type]
        verify(source, file, plan.changes, devices=HOPPER)
        with pytest.raises(Wrong, match=r"its 8\.0 image went"):
            verify(source, file, plan.changes)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda stub: replace(stub, payload=rewrite_target(stub.payload)), "not one for its target"),
        (lambda stub: replace(stub, payload=b"\0" * len(stub.payload)), "not one for its target"),
        (
            lambda stub: replace(stub, header=stub.header[:0x1C] + b"\x5a" + stub.header[0x1D:]),
            "no image that it had",
        ),
    ],
)
def test_a_stub_that_is_not_what_it_stands_for(made: Path, monkeypatch: Patch, harm: Any, match: str) -> None:
    honest = rewrite.stub_for

    def wrong(*given: Any) -> Any:
        stub = honest(*given)
        return harm(stub) if stub else None

    monkeypatch.setattr(rewrite, "stub_for", wrong)
    refused(made, match)


@pytest.mark.parametrize(
    ("place", "match"),
    [(8, "bytes, not"), (16 + 64 + 66, "it has a broken stub")],  # its size; a name in it
)
def test_a_stub_or_a_containers_size_that_is_not_what_was_to_be_written(
    made: Path, monkeypatch: Patch, place: int, match: str
) -> None:
    at = section_of(made, ".cask_resource").address + 45 + place

    def tamper(data: bytearray, elf: Elf) -> None:
        load = next(s for s in elf.loads if s.address <= at < s.address + s.file_size)
        data[load.offset + at - load.address] += 8 if place == 8 else 1

    tampered(monkeypatch, tamper)
    refused(made, match)


def rewrite_target(payload: bytes) -> bytes:
    """A stub's cubin with another SM in its flags."""
    other = 120 if payload[8] == 8 else 90
    place = 49 if payload[8] == 8 else 48
    wrong = other if payload[place] != other else other - 1
    return payload[:place] + bytes([wrong]) + payload[place + 1 :]
