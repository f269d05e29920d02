"""The proof before anything is replaced: every way to break the new file is noticed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from making import capabilities, container, cubin, library, ptx, section

from vllm_variants.errors import ExitCode
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import layout
from vllm_variants.fatbin import library as writer
from vllm_variants.fatbin.layout import Copy
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rewrite import containers_in, device_sections, pieces
from vllm_variants.fatbin.source import Malformed, opened

HOPPER = capabilities("9.0")
FATBIN = section(
    [cubin("sm_80", 200_000), cubin("sm_90a", 80_000)], [cubin("sm_100", 150_000)], [cubin("sm_90", 9000)]
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    resource = b"table" * 9 + container(cubin("sm_120", 90_000)) + b"more"
    return library(tmp_path / "made.so", FATBIN, more={".cask_resource": resource})


def tampered(monkeypatch: pytest.MonkeyPatch, tamper: Callable[[bytearray, elfs.Elf], None]) -> None:
    """Let the writer write, then change what it wrote before the proof."""
    fill = writer._fill

    def wrong(source: object, plan: object, descriptor: int) -> None:
        fill(source, plan, descriptor)  # type: ignore[arg-type]
        with opened(Path(f"/proc/self/fd/{descriptor}")) as new:
            headers, data = elfs.parse(new), bytearray(new.at(0, new.size))
        tamper(data, headers)
        with open(descriptor, "r+b", closefd=False) as file:
            file.write(data)

    monkeypatch.setattr(writer, "_fill", wrong)


def flip(where: Callable[[elfs.Elf], int]) -> Callable[[bytearray, elfs.Elf], None]:
    def tamper(data: bytearray, elf: elfs.Elf) -> None:
        data[where(elf)] ^= 0x40

    return tamper


def in_section(name: str, offset: int = 0) -> Callable[[elfs.Elf], int]:
    return lambda elf: next(s.offset for s in elf.sections if s.name == name) + offset


def in_segment(index: int, field: int) -> Callable[[bytearray, elfs.Elf], None]:
    """Make one field of a program header (by its place in bytes) 8 more."""

    def tamper(data: bytearray, elf: elfs.Elf) -> None:
        at = elf.program_headers_at + index * elfs.PROGRAM_HEADER.size + field
        value = struct.unpack_from("<Q", data, at)[0]
        struct.pack_into("<Q", data, at, value + 8)

    return tamper


@pytest.mark.parametrize(
    "tamper",
    [
        flip(in_section(".text", 7)),
        flip(in_section(".rodata", 70)),
        flip(in_section(".data", 4000)),
        flip(in_section(".comment", 3)),
        flip(in_section(".shstrtab", 3)),
        flip(in_section(".nv_fatbin", 8)),  # a container's new size
        flip(in_section(".nv_fatbin", 16 + 0x28)),  # a kept image's flags
        flip(in_section(".nv_fatbin", 16 + 64 + 40_000)),  # in the middle of a kept image
        flip(in_section(".cask_resource", 3)),
        flip(in_section(".cask_resource", 45 + 16 + 64 + 9)),  # a stub
        flip(lambda elf: 16),  # the type in the ELF header
        flip(lambda elf: 24),  # the entry point
        *(in_segment(index, field) for index in (0, 1, 2, 3) for field in (8, 16, 24, 32, 40, 48)),
        flip(lambda elf: elf.section_headers_at + 64 * 2 + 16),  # a section's address
        flip(lambda elf: elf.section_headers_at + 64 * 3 + 25),  # a section's offset
    ],
)
def test_no_change_goes_unnoticed_and_the_old_file_stays(
    made: Path, monkeypatch: pytest.MonkeyPatch, tamper: Callable[[bytearray, elfs.Elf], None]
) -> None:
    before = made.read_bytes()
    tampered(monkeypatch, tamper)

    with pytest.raises((Wrong, Malformed)):
        slim_file(made, HOPPER)

    assert made.read_bytes() == before
    assert list(made.parent.iterdir()) == [made]


def test_the_error_names_the_library_and_is_an_audit_failure(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tampered(monkeypatch, flip(in_section(".text", 7)))

    with pytest.raises(Wrong, match=r"made\.so.*the byte at address 0x") as caught:
        slim_file(made, HOPPER)

    assert caught.value.exit_code is ExitCode.AUDIT


def test_a_page_dropped_too_many_is_noticed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = layout.holes_in

    def greedy(elf: elfs.Elf, dead: object, smallest: int, most: int) -> list[layout.Hole]:
        first, *rest = honest(elf, dead, smallest, most)  # type: ignore[arg-type]
        return [layout.Hole(first.start - elf.page, first.end), *rest]

    monkeypatch.setattr(layout, "holes_in", greedy)

    with pytest.raises((Wrong, Malformed)):
        slim_file(made, HOPPER)


def test_an_alignment_that_data_needs_and_no_segment_gives_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library(tmp_path / "made.so", FATBIN, alignment=0x4000)
    honest = slim_file(path, HOPPER, to=tmp_path / "honest.so")
    monkeypatch.setattr(elfs.Elf, "alignment", property(lambda elf: elf.page))

    with pytest.raises(Wrong, match="not aligned as it must be"):
        slim_file(path, HOPPER)

    assert honest.changed


def test_a_lost_copy_is_noticed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pieces
    monkeypatch.setattr(
        writer,
        "pieces",
        lambda *given: [p for p in honest(*given) if not (isinstance(p, Copy) and p.length > 50_000)],
    )

    with pytest.raises((Wrong, Malformed)):
        slim_file(made, HOPPER)


def test_an_honest_file_passes(made: Path) -> None:
    report = slim_file(made, HOPPER)

    assert report.changed
    with opened(made) as source:
        found = [c for s in device_sections(elfs.parse(source)) for c in containers_in(source, s)]
    assert [[str(i.target) for i in c.images] for c in found] == [["9.0a"], ["10.0"], ["9.0"]]


def test_stubs_of_ptx_pass_too(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([ptx("compute_120", 150_000)], [cubin("sm_90")]))

    assert slim_file(path, HOPPER).stubs == 1


def with_section_headers_in_memory(path: Path) -> Path:
    """Move the section headers into a segment of their own, as patchelf leaves some libraries."""
    with opened(path) as source:
        elf, data = elfs.parse(source), bytearray(source.at(0, source.size))
    size = len(elf.sections) * elfs.SECTION_HEADER.size
    table = bytes(data[elf.section_headers_at : elf.section_headers_at + size])
    data += bytes(-len(data) % elf.page)
    at, address = len(data), len(data) + 64 * elf.page
    data += table + b"names that are in memory too"
    length = len(data) - at
    struct.pack_into("<Q", data, 0x28, at)
    third = elf.program_headers_at + 2 * elfs.PROGRAM_HEADER.size
    elfs.PROGRAM_HEADER.pack_into(data, third, 1, 6, at, address, address, length, length, elf.page)
    path.write_bytes(data)
    return path


def test_section_headers_that_are_in_memory_may_change_and_what_is_beside_them_may_not(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = with_section_headers_in_memory(made)
    before = moved.read_bytes()
    tampered(monkeypatch, lambda data, elf: flip(lambda elf: elf.loads[-1].end - 3)(data, elf))
    with pytest.raises(Wrong, match=r"the byte at address .* changed"):
        slim_file(moved, HOPPER)
    assert moved.read_bytes() == before
    monkeypatch.undo()
    report = slim_file(moved, HOPPER)
    assert report.saved["images"] > 100_000
    assert report.after < report.before - 100_000


def test_a_wrong_section_header_in_memory_is_noticed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = with_section_headers_in_memory(made)

    def tamper(data: bytearray, elf: elfs.Elf) -> None:
        text = next(n for n, section in enumerate(elf.sections) if section.name == ".rodata")
        data[elf.section_headers_at + text * elfs.SECTION_HEADER.size + 0x10] ^= 0x08  # its address

    tampered(monkeypatch, tamper)
    with pytest.raises(Wrong, match=r"section \.rodata is not the section it was"):
        slim_file(moved, HOPPER)
