"""Slimming libraries: judged by the addresses a loader sees, by cuobjdump, and by a real loader."""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import AARCH64, X86_64, Made, capabilities, container, cubin, library, listed, ptx, section

from vllm_variants.capability import Capability
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.fatbin.rewrite import containers_in, device_sections, resource_sections
from vllm_variants.fatbin.source import mapped

HOPPER = capabilities("9.0")


def memory(path: Path) -> dict[int, bytes]:
    """What a loader maps, by address: read with pyelftools, which knows nothing of this project."""
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    return {s["p_vaddr"]: s.data() for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"}


def at(path: Path, address: int, length: int) -> bytes:
    for start, data in memory(path).items():
        if start <= address and address + length <= start + len(data):
            return data[address - start : address - start + length]
    raise AssertionError(f"{address:#x} is not mapped")


def held(path: Path) -> list[tuple[int, Container]]:
    """Containers with their addresses."""
    found = []
    with mapped(path) as source:
        elf = elfs.parse(source)
        for part in (*device_sections(elf), *resource_sections(elf)):
            for each in containers_in(source, part):
                load = next(s for s in elf.loads if s.offset <= each.offset < s.end)
                found.append((load.address + each.offset - load.offset, each))
    return found


def check_alignment(path: Path, page: int) -> None:
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    end = 0
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_LOAD":
            assert segment["p_align"] == page
            assert segment["p_offset"] % page == segment["p_vaddr"] % page
            assert segment["p_vaddr"] >= end
            end = segment["p_vaddr"] + segment["p_memsz"]


MIXED = section(
    [cubin("sm_80", 200_000), cubin("sm_90a", 300_000), ptx("compute_80", 100_000)],
    [cubin("sm_100f", 90_000), cubin("sm_120a", 80_000)],
    [cubin("sm_90", 70_000)],
    [cubin("sm_80", 150_000), ptx("compute_80", 90_000)],
    [ptx("compute_120", 150_000)],
    padding=8,
)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return library(tmp_path / "mixed.so", MIXED)


def test_cuobjdump_lists_exactly_what_is_kept(mixed: Path) -> None:
    slim_file(mixed, HOPPER)

    # from the second and the last container their stubs
    assert listed(mixed) == ["compute_120", "compute_80", "sm_120a", "sm_90", "sm_90a"]


def test_readelf_finds_nothing_to_complain_about(mixed: Path) -> None:
    slim_file(mixed, HOPPER)

    told = subprocess.run(
        ["readelf", "--wide", "--all", str(mixed)], capture_output=True, text=True, check=False
    )

    assert told.returncode == 0
    assert "Warning" not in told.stderr + told.stdout
    assert "Error" not in told.stderr + told.stdout


def test_the_file_shrinks_by_what_was_dropped(mixed: Path) -> None:
    report = slim_file(mixed, HOPPER)

    assert report.before - report.after > 550_000
    assert mixed.stat().st_size == report.after
    assert (report.containers, report.stubs, report.dropped_images) == (4, 2, 4)


sizes = st.sampled_from([0, 1000, 30_000, 70_000, 140_000])
images = st.builds(
    lambda word, size: ptx(word, size) if word.startswith("compute") else cubin(word, size),
    st.sampled_from(["sm_80", "sm_86", "sm_90", "sm_90a", "sm_100f", "sm_120", "compute_80", "compute_120"]),
    sizes,
) | st.builds(lambda size: Made("sm_50", b"lto" * (size // 3), code=8), sizes)
fatbins = st.lists(st.lists(images, max_size=4), min_size=1, max_size=5)
devices = st.lists(
    st.sampled_from(capabilities("8.0", "8.9", "9.0", "10.3", "12.0")), min_size=1, max_size=2, unique=True
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fatbins, st.lists(st.lists(images, max_size=2), max_size=2), devices, st.sampled_from([X86_64, AARCH64])
)
def test_every_address_and_every_kept_image_is_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    executable: list[list[Made]],
    relocatable: list[list[Made]],
    wanted: list[Capability],
    machine: int,
) -> None:
    folder = tmp_path_factory.mktemp("slim")
    more = {"__nv_relfatbin": section(*relocatable)} if relocatable else {}
    path = library(folder / "made.so", section(*executable, padding=8), more=more, machine=machine)
    new = folder / "new.so"

    report = slim_file(path, wanted, to=new)

    assert report.changed == new.exists()
    if not report.changed:
        return
    check_alignment(new, elfs.PAGE_SIZES[machine])
    was, now = held(path), held(new)
    assert [address for address, _ in was] == [address for address, _ in now]
    old_memory, fatbin_ends = (
        memory(path),
        dict(zip((a for a, _ in was), [*(a for a, _ in was[1:]), 0], strict=True)),
    )
    for (address, before), (_, after) in zip(was, now, strict=True):
        kept = kept_images(before, wanted)
        if len(kept) == len(before.images) or not kept:
            expected = [i.target for i in before.images] if kept or not before.images else None
            assert expected is None or [i.target for i in after.images] == expected
        else:
            assert [(i.code, i.target, i.size) for i in after.images] == [
                (i.code, i.target, i.size) for i in kept
            ]
            position = address + before.header_size
            for image in kept:
                source_at = address + image.offset - before.offset
                assert at(new, position, image.size) == at(path, source_at, image.size)
                position += image.size
    first, second = old_memory.values()
    end_of_code = was[0][0]
    assert at(new, 64, end_of_code - 64) == first[64:end_of_code]
    behind = max(a + c.size for a, c in was)
    assert at(new, behind, len(first) - behind) == first[behind:]
    assert list(memory(new).values())[-1] == second
    assert fatbin_ends is not None


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(fatbins, devices)
def test_slimming_is_deterministic_and_idempotent(
    tmp_path_factory: pytest.TempPathFactory, made: list[list[Made]], wanted: list[Capability]
) -> None:
    folder = tmp_path_factory.mktemp("slim")
    path = library(folder / "a.so", section(*made))
    shutil.copy(path, folder / "b.so")

    changed = slim_file(path, wanted).changed
    once = path.read_bytes()
    slim_file(folder / "b.so", wanted)
    again = slim_file(path, wanted)

    assert (folder / "b.so").read_bytes() == once
    assert path.read_bytes() == once
    assert not changed or again.kept == "nothing to drop"


def test_slimming_in_two_steps_gives_what_one_step_gives(mixed: Path, tmp_path: Path) -> None:
    in_one = tmp_path / "one.so"
    slim_file(mixed, HOPPER, to=in_one)

    slim_file(mixed, capabilities("8.0", "9.0"))
    slim_file(mixed, HOPPER)

    assert listed(mixed) == listed(in_one)
    assert [address for address, _ in held(mixed)] == [address for address, _ in held(in_one)]
    assert mixed.stat().st_size <= in_one.stat().st_size + 0x2000


def test_mode_and_times_stay(mixed: Path) -> None:
    mixed.chmod(0o750)
    os.utime(mixed, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))

    slim_file(mixed, HOPPER)

    status = mixed.stat()
    assert status.st_mode & 0o7777 == 0o750
    assert status.st_mtime_ns == 1_500_000_000_987_654_321


@pytest.mark.parametrize("machine", [X86_64, AARCH64])
def test_bss_is_as_large_as_it_was(tmp_path: Path, machine: int) -> None:
    path = library(tmp_path / "made.so", MIXED, machine=machine)
    before = ELFFile(io.BytesIO(path.read_bytes())).get_segment(1)

    slim_file(path, HOPPER)

    loads = [s for s in ELFFile(io.BytesIO(path.read_bytes())).iter_segments() if s["p_type"] == "PT_LOAD"]
    assert loads[-1]["p_memsz"] == before["p_memsz"]
    assert loads[-1]["p_vaddr"] == before["p_vaddr"]


def test_the_program_headers_lie_in_no_mapped_page(mixed: Path) -> None:
    slim_file(mixed, HOPPER)

    elf = ELFFile(io.BytesIO(mixed.read_bytes()))
    table = elf["e_phoff"]
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_LOAD":
            assert (
                not segment["p_offset"]
                <= table
                < -(-(segment["p_offset"] + segment["p_filesz"]) // 4096) * 4096
            )


def test_several_devices_and_ptx_for_later_ones(mixed: Path, tmp_path: Path) -> None:
    slim_file(mixed, capabilities("8.0", "9.0"), to=tmp_path / "two.so")
    slim_file(mixed, HOPPER, to=tmp_path / "later.so", keep_ptx=True)

    assert listed(tmp_path / "two.so") == [
        "compute_120", "compute_80", "sm_120a", "sm_80", "sm_80", "sm_90", "sm_90a"
    ]  # fmt: skip
    assert listed(tmp_path / "later.so") == [
        "compute_120", "compute_80", "compute_80", "sm_120a", "sm_90", "sm_90a"
    ]  # fmt: skip


def test_containers_among_tables_get_stubs_in_place(tmp_path: Path) -> None:
    foreign, native = container(cubin("sm_100a", 200_000)), container(cubin("sm_90a", 100_000))
    resource = (
        b"a table before ".ljust(64, b".") + foreign + b"between.".ljust(64, b".") + native + b"behind" * 9
    )
    path = library(tmp_path / "made.so", MIXED, more={".cask_resource": resource})
    before = memory(path)[0]
    start = before.index(b"a table before")

    slim_file(path, HOPPER)

    assert at(path, start, 64 + 16) == before[start : start + 64 + 8] + at(path, start + 72, 8)  # a new size
    rest = start + 64 + len(foreign)
    assert at(path, rest, len(resource) - 64 - len(foreign)) == resource[64 + len(foreign) :]
    assert path.stat().st_size < len(before) - 700_000

    untouched = library(tmp_path / "other.so", MIXED, more={".cask_resource": resource})
    slim_file(untouched, HOPPER, resources=False)
    assert at(untouched, start, len(resource)) == resource


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b"#!/bin/sh\n"), "no ELF64 library"),
        (lambda path: library(path, b"", name=".other"), "no device code"),
        (lambda path: library(path, MIXED, kind=elfs.ET_REL), "an object file: nvprune slims those"),
        (lambda path: library(path, section([cubin("sm_90", 99_999)])), "nothing to drop"),
        (lambda path: library(path, section([cubin("sm_80", 30_000)], [cubin("sm_90")])), "nothing to drop"),
        (lambda path: path.write_bytes(library(path, MIXED).read_bytes() + b"~signature~"), "signed"),
    ],
)
def test_what_cannot_be_slimmed_is_left_and_says_why(tmp_path: Path, make: object, why: str) -> None:
    path = tmp_path / "made.so"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()

    report = slim_file(path, HOPPER)

    assert why in report.kept
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


SOURCE = r"""
    .section .nv_fatbin,"a",@progbits
    .balign 8
    .globl fatbin
fatbin: .incbin "%s"
    .section .data
    .globl pointer
    .balign 8
pointer: .quad fatbin
    .section .rodata
    .globl word
word: .asciz "behind the code"
    .text
    .globl answer
answer: mov $42, %%eax
    ret
    .section .note.GNU-stack,"",@progbits
"""


@pytest.fixture
def loadable(tmp_path: Path) -> Path:
    """A library that the system's compiler linked, with relocations into its fat binaries."""
    if not shutil.which("gcc") or os.uname().machine != "x86_64":
        pytest.skip("needs gcc for x86-64")
    (tmp_path / "fatbin").write_bytes(MIXED)
    (tmp_path / "made.s").write_text(SOURCE % (tmp_path / "fatbin"))
    path = tmp_path / "loadable.so"
    command = ["gcc", "-shared", "-nostdlib", "-g", "-o", str(path), str(tmp_path / "made.s")]
    subprocess.run(command, check=True)
    return path


LOAD = """
import ctypes, sys
made = ctypes.CDLL(sys.argv[1])
pointer = ctypes.c_uint64.in_dll(made, "pointer").value
word = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(made, "word")))
print(made.answer(), ctypes.string_at(pointer, 4).hex(), word.decode())
"""


def load(path: Path) -> str:
    told = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or told.stderr


def test_a_slimmed_library_is_loaded_and_its_relocations_hold(loadable: Path) -> None:
    before = load(loadable)

    assert slim_file(loadable, HOPPER).changed

    assert before == "42 50ed55ba behind the code"
    assert load(loadable) == before
    told = subprocess.run(["ldd", str(loadable)], capture_output=True, text=True, check=False)
    assert told.returncode == 0


def test_stripping_before_slimming_works(loadable: Path) -> None:
    subprocess.run(["strip", str(loadable)], check=True)

    slim_file(loadable, HOPPER)

    assert load(loadable) == "42 50ed55ba behind the code"


def test_strip_refuses_a_slimmed_library_and_leaves_it_whole(loadable: Path) -> None:
    """The program headers lie behind the sections, and binutils has no room for them in front."""
    slim_file(loadable, HOPPER)
    before = loadable.read_bytes()

    told = subprocess.run(["strip", str(loadable)], capture_output=True, text=True, check=False)

    if told.returncode:
        assert loadable.read_bytes() == before
    assert load(loadable) == "42 50ed55ba behind the code"


def test_the_loader_maps_no_dropped_page(loadable: Path) -> None:
    slim_file(loadable, HOPPER)

    resident = sum(len(data) for data in memory(loadable).values())

    assert resident < 500_000
    assert isinstance(ctypes.CDLL(str(loadable)).answer(), int)
