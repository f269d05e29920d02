"""Slimming libraries: judged by the addresses a loader sees, by cuobjdump, and by a real loader."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import AARCH64, X86_64, Made, capabilities, container, cubin, library, listed, ptx, section

from vllm_variants.errors import ExitCode, UsageError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import library as library_module
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.fatbin.rewrite import containers_in, device_sections, resource_sections
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import Malformed, opened
from vllm_variants.fatbin.writing import Untouched, Unwritable, copy_file
from vllm_variants.model.capability import Capability

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
    with opened(path) as source:
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
    old_memory = memory(path)
    assert all(a + c.size <= after for (a, c), (after, _) in pairwise(now))
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


@pytest.mark.parametrize("rules", [Rules(), Rules(keep_symbols=False)])
def test_a_library_of_which_two_segments_load_the_same_bytes_is_not_cut(rules: Rules, mixed: Path) -> None:
    data = bytearray(mixed.read_bytes())
    load = list(struct.unpack_from("<IIQQQQQQ", data, 64))
    load[3] = load[4] = 1 << 24
    struct.pack_into("<IIQQQQQQ", data, 64 + 2 * 56, *load)  # instead of the stack's
    mixed.write_bytes(data)
    assert slim_file(mixed, HOPPER, rules).saved.get("images", 0) == 0


@pytest.mark.parametrize("rules", [Rules(), Rules(keep_symbols=False)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_segment_without_bytes_stays_aligned_wherever_it_points(
    share: float, rules: Rules, mixed: Path
) -> None:
    data = bytearray(mixed.read_bytes())
    offset = int(share * len(data)) // 0x1000 * 0x1000 + 0x730
    segment = (1, 6, offset, (1 << 24) + 0x730, (1 << 24) + 0x730, 0, 5000, 0x1000)
    struct.pack_into("<IIQQQQQQ", data, 64 + 2 * 56, *segment)  # instead of the stack's
    mixed.write_bytes(data)
    assert slim_file(mixed, HOPPER, rules).saved["images"] > 0
    (bare,) = (s for s in ELFFile(io.BytesIO(mixed.read_bytes())).iter_segments() if s["p_vaddr"] >= 1 << 24)
    assert (bare["p_memsz"], bare["p_filesz"], bare["p_align"]) == (5000, 0, 0x1000)
    assert (bare["p_vaddr"] - bare["p_offset"]) % 0x1000 == 0
    assert bare["p_offset"] // 0x1000 * 0x1000 < mixed.stat().st_size


def test_a_segment_without_bytes_keeps_its_page_where_its_alignment_is_more_than_what_is_left(
    tmp_path: Path,
) -> None:
    align = 1 << 21
    path = library(tmp_path / "x.so", section([cubin("sm_80", 5_000_000)], [cubin("sm_90")]), alignment=align)
    data = bytearray(path.read_bytes())
    offset, address = (1 << 20) + 0x730, (64 << 21) + (1 << 20) + 0x730
    struct.pack_into("<IIQQQQQQ", data, 64 + 2 * 56, 1, 6, offset, address, address, 0, 5000, align)
    path.write_bytes(data)
    assert slim_file(path, HOPPER).saved["images"] > 3_000_000
    bare = list(ELFFile(io.BytesIO(path.read_bytes())).iter_segments("PT_LOAD"))[-1]
    assert (bare["p_vaddr"], bare["p_filesz"], bare["p_align"]) == (address, 0, align)
    assert (address - bare["p_offset"]) % align == 0
    assert bare["p_offset"] // 0x1000 * 0x1000 < path.stat().st_size


def test_a_dynamic_segment_without_bytes_behind_the_files_end_is_no_matter(mixed: Path) -> None:
    data = bytearray(mixed.read_bytes())
    dynamic = (2, 6, len(data) + 0x5000, 1 << 24, 1 << 24, 0, 5000, 8)
    struct.pack_into("<IIQQQQQQ", data, 64 + 2 * 56, *dynamic)  # instead of the stack's
    mixed.write_bytes(data)
    assert slim_file(mixed, HOPPER).saved["images"] > 0
    assert not slim_file(mixed, HOPPER).changed


PROGRAM = """
asm(".section .nv_fatbin,\\"a\\"\\n .balign 4096\\n fat: .incbin \\"CODE\\"\\n .text");
extern const unsigned char fat[];
static __thread int own = 7;
int main(int count, char **words) { return !(fat[0] == 0x50 && own == 7 && count == 1 && words[0]); }
"""


@pytest.mark.parametrize("kind", ["-pie", "-no-pie", "-static", "-static-pie"])
@pytest.mark.parametrize("keep_symbols", [True, False])
def test_a_programs_device_code_stays_and_the_program_runs(
    kind: str, keep_symbols: bool, tmp_path: Path
) -> None:
    code = section([cubin("sm_80", 300_000), cubin("sm_90", 3000)])
    (tmp_path / "code").write_bytes(code)
    (tmp_path / "program.c").write_text(PROGRAM.replace("CODE", str(tmp_path / "code")))
    program = tmp_path / "program"
    command = ["gcc", "-g", kind, "-x", "c", str(tmp_path / "program.c"), "-o", str(program)]
    if not shutil.which("gcc") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"no gcc that links {kind} programs")
    subprocess.run([program], check=True)
    report = slim_file(program, [Capability(9, 0)], Rules(keep_symbols=keep_symbols))
    assert report.changed is not keep_symbols
    assert "a program: in more segments" in report.kept or report.changed
    assert code in program.read_bytes()
    subprocess.run([program], check=True)


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
    slim_file(mixed, HOPPER, Rules(keep_ptx=True), to=tmp_path / "later.so")

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
    slim_file(untouched, HOPPER, Rules(resources=False))
    assert at(untouched, start, len(resource)) == resource


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b"#!/bin/sh\n"), "no ELF64 library"),
        (lambda path: library(path, b"", name=".other"), "no device code"),
        (lambda path: library(path, MIXED, kind=elfs.ET_REL), "an object file: nvprune slims those"),
        (lambda path: library(path, section([cubin("sm_90", 99_999)])), "nothing to drop"),
        (lambda path: library(path, section([cubin("sm_80", 10_000)], [cubin("sm_90")])), "nothing to drop"),
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

    assert told.returncode != 0
    assert "not enough room for program headers" in told.stderr
    assert loadable.read_bytes() == before
    assert load(loadable) == "42 50ed55ba behind the code"


def test_the_loader_maps_no_dropped_page(loadable: Path) -> None:
    slim_file(loadable, HOPPER)

    resident = sum(len(data) for data in memory(loadable).values())

    assert resident < 500_000
    assert isinstance(ctypes.CDLL(str(loadable)).answer(), int)


ALIGNED = r"""
__asm__(".section .nv_fatbin,\"a\",@progbits\n.balign 8\n.incbin \"%s\"\n.text\n");
__attribute__((aligned(65536))) char aligned[65536] = {1};
"""
ADDRESS = (
    "import ctypes, sys; print(ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(sys.argv[1]), 'aligned')))"
)


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    """A library with data that wants an address that is a multiple of 64 KiB."""
    if not shutil.which("gcc") or os.uname().machine != "x86_64":
        pytest.skip("needs gcc for x86-64")
    fatbin = [cubin("sm_80", 270_001), cubin("sm_90a", 3000)], [cubin("sm_100", 130_001)], [cubin("sm_90")]
    (tmp_path / "fatbin").write_bytes(section(*fatbin))
    (tmp_path / "aligned.c").write_text(ALIGNED % (tmp_path / "fatbin"))
    path = tmp_path / "aligned.so"
    command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-o", str(path), str(tmp_path / "aligned.c")]
    subprocess.run(command, check=True)
    return path


def addresses(path: Path) -> list[int]:
    """Where the aligned data is, in eight processes (addresses are random)."""
    command = [sys.executable, "-c", ADDRESS, str(path)]
    return [int(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(8)]


def test_aligned_data_is_as_aligned_after_slimming_as_before(aligned: Path) -> None:
    if {address % 65536 for address in addresses(aligned)} != {0}:
        pytest.skip("this system's loader does not honour p_align (glibc does from 2.35 on)")

    report = slim_file(aligned, HOPPER)

    assert report.before - report.after >= 3 * 65536
    assert {address % 65536 for address in addresses(aligned)} == {0}
    segments = ELFFile(io.BytesIO(aligned.read_bytes())).iter_segments()
    loads = [s.header for s in segments if s["p_type"] == "PT_LOAD"]
    assert max(load.p_align for load in loads) == 65536
    assert all((load.p_vaddr - load.p_offset) % load.p_align == 0 for load in loads)


def test_a_large_page_size_of_the_linker_costs_no_hole(tmp_path: Path) -> None:
    """Old linkers promise 2 MiB that no data asks for; NVIDIA's libraries are linked so."""
    path = library(tmp_path / "made.so", MIXED)
    data = bytearray(path.read_bytes())
    for index in (0, 1):
        struct.pack_into("<Q", data, 64 + 56 * index + 48, 1 << 16)
    path.write_bytes(data)
    plain = library(tmp_path / "plain.so", MIXED)

    assert slim_file(path, HOPPER).after == slim_file(plain, HOPPER).after


During = Callable[[Path], object]


def during_the_proof(monkeypatch: pytest.MonkeyPatch, path: Path, act: During) -> None:
    """Let somebody `act` on the library after its new file was proven, before that is published."""
    verify = library_module.verify

    def verified(*given: object) -> None:
        monkeypatch.setattr(library_module, "verify", verify)
        verify(*given)  # type: ignore[arg-type]
        act(path)

    monkeypatch.setattr(library_module, "verify", verified)


def upgrade(path: Path) -> None:
    new = library(path.with_name("upgrade"), section([cubin("sm_90", 300_000)]))
    new.replace(path)


def cut(path: Path) -> None:
    os.truncate(path, 5000)


@pytest.mark.parametrize(("act", "what"), [(upgrade, "replaced"), (Path.unlink, "removed"), (cut, "written")])
def test_a_library_that_somebody_changes_meanwhile_stays_theirs(
    mixed: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    act: During,
    what: str,
) -> None:
    during_the_proof(monkeypatch, mixed, act)
    theirs = tmp_path_factory.mktemp("theirs")
    shutil.copy2(mixed, theirs / mixed.name)
    act(theirs / mixed.name)

    with pytest.raises(Untouched, match=f"mixed.so was {what} .*by somebody else") as caught:
        slim_file(mixed, HOPPER)

    assert caught.value.exit_code is ExitCode.FAILED
    left = {path.name: path.read_bytes() for path in mixed.parent.iterdir() if path.is_file()}
    assert left == {path.name: path.read_bytes() for path in theirs.iterdir()}


@pytest.mark.parametrize(("act", "what"), [(upgrade, "replaced"), (Path.unlink, "removed")])
def test_what_somebody_does_while_the_new_file_is_brought_to_the_disk_stays_theirs(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: During, what: str
) -> None:
    """That takes long on a slow disk, so it comes before the last look at the old file."""
    fsync, seen = os.fsync, [0]

    def while_it_is(nth: int, path: Path) -> None:
        seen[0] = 0

        def slow(descriptor: int) -> None:
            fsync(descriptor)
            seen[0] += stat.S_ISREG(os.fstat(descriptor).st_mode)
            if seen[0] == nth and path.exists():
                act(path)

        monkeypatch.setattr(os, "fsync", slow)
        slim_file(path, HOPPER)

    while_it_is(0, Path(shutil.copy2(mixed, tmp_path / "undisturbed.so")))
    times = seen[0]
    assert times
    for nth in range(1, times + 1):
        with pytest.raises(Untouched, match=f"libm.so was {what} .*by somebody else"):
            while_it_is(nth, Path(shutil.copy2(mixed, tmp_path / "libm.so")))


def test_of_two_slims_of_one_library_one_wins_and_the_other_says_so(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_the_proof(monkeypatch, mixed, lambda path: slim_file(path, HOPPER))

    with pytest.raises(Untouched, match="replaced"):
        slim_file(mixed, HOPPER)

    assert slim_file(mixed, HOPPER).kept == "nothing to drop"
    assert listed(mixed) == ["compute_120", "compute_80", "sm_120a", "sm_90", "sm_90a"]
    assert list(mixed.parent.iterdir()) == [mixed]


def test_an_output_that_appears_meanwhile_is_not_replaced(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    new = tmp_path / "new.so"
    during_the_proof(monkeypatch, mixed, lambda path: new.write_text("theirs"))

    with pytest.raises(UsageError, match="exists already"):
        slim_file(mixed, HOPPER, to=new)

    assert new.read_text() == "theirs"


def test_a_library_that_is_cut_off_while_it_is_read_is_a_sentence(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = library_module.plan_file

    def after_a_cut(*given: object) -> object:
        cut(mixed)
        return planned(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(library_module, "plan_file", after_a_cut)

    with pytest.raises(Malformed, match="bytes are missing"):
        slim_file(mixed, HOPPER)

    assert list(mixed.parent.iterdir()) == [mixed]


def test_extended_attributes_and_acls_stay(mixed: Path) -> None:
    everyone = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, permission, who)
        for tag, permission, who in [
            (1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF),
        ]
    )  # fmt: skip
    try:
        os.setxattr(mixed, "user.note", b"kept")
        os.setxattr(mixed, "system.posix_acl_access", everyone)
    except OSError as error:
        pytest.skip(f"this file system has no extended attributes: {error.strerror}")
    before = {name: os.getxattr(mixed, name) for name in os.listxattr(mixed)}

    assert slim_file(mixed, HOPPER).changed

    assert {name: os.getxattr(mixed, name) for name in os.listxattr(mixed)} == before


@pytest.mark.parametrize("name", ["security.capability", "system.posix_acl_access"])
def test_a_library_whose_security_attributes_cannot_be_kept_is_refused(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(target: object, attribute: str, value: bytes) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    before = mixed.read_bytes()
    monkeypatch.setattr(os, "listxattr", lambda target: [name])
    monkeypatch.setattr(os, "getxattr", lambda target, attribute: str(target).encode())
    monkeypatch.setattr(os, "setxattr", refuse)

    with pytest.raises(Untouched, match=f"{name} could not be kept"):
        slim_file(mixed, HOPPER)

    assert mixed.read_bytes() == before
    assert list(mixed.parent.iterdir()) == [mixed]


def test_somebody_elses_setuid_is_not_given_away(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, owner: int, group: int) -> None:
        raise PermissionError

    mixed.chmod(0o4755)
    monkeypatch.setattr(os, "fchown", refuse)

    slim_file(mixed, HOPPER)

    assert mixed.stat().st_mode & 0o7777 == 0o755


def test_a_folder_that_cannot_be_written_is_a_sentence(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(library_module.atomic, "_create", refuse)

    with pytest.raises(Unwritable, match=r"mixed\.so cannot be written: Permission denied"):
        slim_file(mixed, HOPPER)


def test_an_unchanged_copy_has_all_that_its_source_has(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"bytes" * 50_000)
    source.chmod(0o640)
    os.utime(source, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))

    copy_file(source, tmp_path / "copy")

    copy = (tmp_path / "copy").stat()
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert (copy.st_mode & 0o7777, copy.st_mtime_ns) == (0o640, 1_500_000_000_987_654_321)


def test_ptx_for_later_gpus_stays_among_tables_too(tmp_path: Path) -> None:
    resource = b"table".ljust(64, b".") + container(cubin("sm_100a", 200_000), ptx("compute_100", 90_000))
    path = library(tmp_path / "made.so", MIXED, more={".cask_resource": resource})
    start = memory(path)[0].index(b"table...")

    slim_file(path, HOPPER, Rules(keep_ptx=True))

    assert at(path, start, len(resource)) == resource


def test_a_report_says_for_which_devices_nothing_runs(tmp_path: Path) -> None:
    code = section([cubin("sm_80", 200_000)], [cubin("sm_120", 90_000), ptx("compute_120", 9000)])
    path = library(tmp_path / "made.so", code)

    reports = [slim_file(path, capabilities("8.6", word), to=tmp_path / word) for word in ("9.0", "12.1")]

    assert [report.unserved for report in reports] == [("sm90",), ()]
    assert slim_file(tmp_path / "9.0", capabilities("12.0")).unserved == ("sm120",)  # a stub is no code


def test_sections_that_claim_the_same_bytes_make_a_library_malformed(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_80", 90_000), cubin("sm_90", 90_000)]))
    data = bytearray(path.read_bytes())
    with opened(path) as source:
        elf = elfs.parse(source)
    row = next(number for number, s in enumerate(elf.sections) if s.name == ".nv_fatbin")
    text = next(number for number, s in enumerate(elf.sections) if s.name == ".text")
    size = elfs.SECTION_HEADER.size
    first, second = (elf.section_headers_at + number * size for number in (row, text))
    data[second : second + size] = data[first : first + size]
    path.write_bytes(data)
    before = path.read_bytes()
    with pytest.raises(Malformed, match=r"section \.nv_fatbin lies in \.nv_fatbin"):
        slim_file(path, [Capability(9, 0)])
    assert path.read_bytes() == before


def test_a_giant_of_nothing_behind_a_library_is_not_read(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_80", 90_000), cubin("sm_90", 90_000)]))
    os.truncate(path, 1 << 42)  # reading that would take an hour
    report = slim_file(path, [Capability(9, 0)], to=tmp_path / "new.so")
    assert report.before == 1 << 42
    assert report.kept.startswith("signed, or with other data appended")
