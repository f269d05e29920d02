"""Stripping, of what gcc and patchelf make: judged by readelf, eu-elflint, GNU strip and a real loader."""

from __future__ import annotations

import ctypes
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from making import AARCH64, capabilities, cubin, library, section

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import strip
from vllm_variants.fatbin.library import FileReport, slim_file
from vllm_variants.fatbin.proof import Wrong, verify
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import OpenFile, opened
from vllm_variants.model.capability import Capability

STRIP = Rules(keep_symbols=False)

CODE = """
#include <stdlib.h>
static int table[5000] = {1, 2, 3};
const char text[9000] = "read only";
__thread int per_thread = 5;
__attribute__((aligned(ALIGNED))) int wide[64] = {7};
static int hidden(int x) { return x * table[2] + per_thread + wide[0]; }
int answer(int x) { return hidden(x) + text[0]; }
int main(int argc, char **argv) { (void)argv; return answer(argc) == 3 + 5 + 7 + 'r' ? 0 : 1; }
"""
ANSWER = f"{4 * 3 + 5 + 7 + ord('r')}\n"
MANY = "\n".join(
    f"static int f{i}(int x) {{ return x + {i}; }} int g{i}(int x) {{ return f{i}(x); }}" for i in range(400)
)


def strip_file(path: Path, to: Path | None = None) -> FileReport:
    return slim_file(path, (), STRIP, to=to)


def proven(source: OpenFile, new: Path, unread: frozenset[int]) -> None:
    with opened(new) as file:
        verify(source, file, (), unread)


def tool(name: str) -> str:
    """A judge's path; the test is skipped where it is not installed."""
    beside = Path(sysconfig.get_path("scripts"), name)
    if found := shutil.which(name) or (str(beside) if beside.exists() else None):
        return found
    pytest.skip(f"{name} is not installed")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def compiled(path: Path, *options: str, code: str = CODE + MANY, aligned: int = 64) -> Path:
    """A shared library with symbols and debug information."""
    source = path.with_suffix(".c")
    source.write_text(code)
    made = run(
        tool("gcc"), "-shared", "-fPIC", "-g3", "-O1", f"-DALIGNED={aligned}", *options, source, "-o", path
    )
    assert made.returncode == 0, made.stderr
    return path


def patchelfed(path: Path) -> Path:
    """A library whose sections patchelf moved: what it does not map lies between two segments then."""
    compiled(path)
    done = run(tool("patchelf"), "--set-rpath", "/" + "long/" * 900, path)
    assert done.returncode == 0, done.stderr
    return path


def with_device_code(path: Path, *options: str) -> Path:
    """A library with a fat binary for several SMs, and all that stripping drops."""
    fatbin = path.with_suffix(".fatbin")
    fatbin.write_bytes(section([cubin("sm_80", 300_000), cubin("sm_90", 99_000)], [cubin("sm_100", 200_000)]))
    asm = f'__asm__(".section .nv_fatbin,\\"a\\"\\n.balign 8\\n.incbin \\"{fatbin}\\"\\n.previous\\n");'
    return compiled(path, *options, code=CODE + MANY + asm)


def slimmed(path: Path) -> Path:
    assert slim_file(with_device_code(path), capabilities("9.0")).changed
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "plain": compiled,
    "large-pages": lambda path: compiled(path, "-Wl,-z,max-page-size=0x200000"),
    "separate-code": lambda path: compiled(path, "-Wl,-z,separate-code"),
    "patchelf": patchelfed,
    "slimmed": slimmed,
    "emit-relocs": lambda path: compiled(path, "-Wl,--emit-relocs"),
    "compressed-debug": lambda path: compiled(path, "-gz"),
}


@pytest.fixture(params=MAKERS)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return MAKERS[request.param](tmp_path / "lib.so")


def answer(path: Path) -> str:
    """What a process says that loads the library and calls it."""
    script = "import ctypes,sys; print(ctypes.CDLL(sys.argv[1]).answer(4))"
    told = run(sys.executable, "-c", script, path)
    return told.stdout + told.stderr


def memory(path: Path) -> dict[int, bytes]:
    """What a loader maps, by address, without the ELF header and the program headers."""
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    mapped_bytes = {}
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_LOAD":
            data = bytearray(segment.data())
            for at, size in ((0, 64), (elf["e_phoff"], elf["e_phnum"] * 56)):
                start = max(at - segment["p_offset"], 0)
                end = min(at + size - segment["p_offset"], len(data))
                data[start:end] = bytes(max(end - start, 0))
            mapped_bytes[segment["p_vaddr"]] = bytes(data)
    return mapped_bytes


def names(path: Path) -> list[str]:
    return [part.name for part in ELFFile(io.BytesIO(path.read_bytes())).iter_sections()]


def test_what_is_loaded_is_the_same_and_the_library_answers_the_same(built: Path, tmp_path: Path) -> None:
    before = answer(built)
    report = strip_file(built, to=tmp_path / "new.so")
    assert report.changed and report.after == (tmp_path / "new.so").stat().st_size < report.before
    assert memory(tmp_path / "new.so") == memory(built)
    assert answer(tmp_path / "new.so") == before == ANSWER


def test_segments_stay_congruent_and_ordered(built: Path) -> None:
    strip_file(built)
    loads = [s for s in ELFFile(io.BytesIO(built.read_bytes())).iter_segments() if s["p_type"] == "PT_LOAD"]
    assert all(s["p_align"] >= 0x1000 and (s["p_offset"] - s["p_vaddr"]) % s["p_align"] == 0 for s in loads)
    assert all(a["p_offset"] <= b["p_offset"] and a["p_vaddr"] < b["p_vaddr"] for a, b in pairwise(loads))


def test_symbols_and_debug_information_go_and_every_section_keeps_its_number(built: Path) -> None:
    before = names(built)
    strip_file(built)
    after = names(built)
    assert len(after) == len(before)
    assert not [
        name for name in after if name.startswith((".debug", ".zdebug", ".symtab", ".strtab", ".rela.debug"))
    ]
    assert [new for old, new in zip(before, after, strict=True) if new] == [
        name for name in before if name in after and name
    ]
    elf = ELFFile(io.BytesIO(built.read_bytes()))
    for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
        if isinstance(symbol["st_shndx"], int):
            assert elf.get_section(symbol["st_shndx"])["sh_type"] != "SHT_NULL"


def test_readelf_finds_nothing_to_complain_of(built: Path, tmp_path: Path) -> None:
    strip_file(built, to=tmp_path / "new.so")
    options = ("-hlSdsrnVW",)
    assert (
        run(tool("readelf"), *options, tmp_path / "new.so").stderr.replace("new.so", "lib.so")
        == run(tool("readelf"), *options, built).stderr
    )


def test_elflint_finds_nothing_that_it_did_not_find_before(built: Path, tmp_path: Path) -> None:
    strip_file(built, to=tmp_path / "new.so")

    def complaints(path: Path) -> set[str]:
        told = run(tool("eu-elflint"), "--gnu-ld", path).stdout
        return {re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in told.splitlines()} - {"No errors"}

    assert complaints(tmp_path / "new.so") <= complaints(built)


def test_it_is_as_small_as_gnu_strip_makes_it(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    judge = shutil.copy(built, tmp_path / "gnu.so")
    assert run(tool("strip"), "--strip-all", judge).returncode == 0
    headers = 64 * len(names(built))  # GNU strip renumbers the sections, and drops their headers
    assert strip_file(built).after <= judge.stat().st_size + headers


def test_a_slimmed_library_is_stripped_where_gnu_strip_refuses(tmp_path: Path) -> None:
    built = slimmed(tmp_path / "lib.so")
    judge = shutil.copy(built, tmp_path / "gnu.so")
    assert run(tool("strip"), judge).returncode != 0 or judge.stat().st_size == built.stat().st_size
    report = strip_file(built)
    assert report.changed and ".symtab" in report.sections
    assert not slim_file(built, capabilities("9.0")).changed


def test_stripping_and_slimming_commute(tmp_path: Path) -> None:
    one, two = with_device_code(tmp_path / "one.so"), tmp_path / "two.so"
    shutil.copy(one, two)
    slim_file(one, capabilities("9.0"))
    strip_file(one)
    strip_file(two)
    slim_file(two, capabilities("9.0"))
    assert memory(one).keys() == memory(two).keys()
    assert all(memory(one)[address] == memory(two)[address] for address in list(memory(one))[1:])
    assert answer(one) == answer(two) == ANSWER


def test_one_pass_slims_and_strips_to_the_same_bytes_as_two(tmp_path: Path) -> None:
    one, two = with_device_code(tmp_path / "one.so"), tmp_path / "two.so"
    report = slim_file(one, capabilities("9.0"), STRIP, to=two)
    slim_file(one, capabilities("9.0"))
    strip_file(one)
    assert min(report.saved["images"], report.saved["symbols"]) > 0
    assert two.read_bytes() == one.read_bytes()
    assert answer(two) == ANSWER


def test_pages_between_segments_leave_the_file(tmp_path: Path) -> None:
    built = patchelfed(tmp_path / "lib.so")
    with opened(built) as source:
        holes = strip.unmapped_holes(elfs.parse(source))
    assert holes, "patchelf put nothing between two segments: this test tests nothing"
    strip_file(built)
    with opened(built) as source:
        assert not strip.unmapped_holes(elfs.parse(source))


def test_stripping_again_changes_nothing(built: Path) -> None:
    strip_file(built)
    once, inode = built.read_bytes(), built.stat().st_ino
    assert strip_file(built).kept == "nothing to drop"
    assert (built.read_bytes(), built.stat().st_ino) == (once, inode)


def test_the_same_file_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    for name in ("one.so", "two.so"):
        strip_file(built, to=tmp_path / name)
    assert (tmp_path / "one.so").read_bytes() == (tmp_path / "two.so").read_bytes()


def test_notes_comment_and_the_name_of_the_debug_file_stay(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so", "-Wl,--build-id")
    debug = tmp_path / "lib.debug"
    run(tool("objcopy"), "--only-keep-debug", built, debug)
    assert run(tool("objcopy"), f"--add-gnu-debuglink={debug}", built).returncode == 0
    kept = {name: contents(built, name) for name in (".gnu_debuglink", ".comment", ".note.gnu.build-id")}
    strip_file(built)
    assert {name: contents(built, name) for name in kept} == kept


def test_a_section_of_a_kind_that_is_not_known_stays(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    data = tmp_path / "data"
    data.write_bytes(b"some program reads this in its own file " * 99)
    assert run(tool("objcopy"), "--add-section", f".own={data}", built).returncode == 0
    strip_file(built)
    assert contents(built, ".own") == data.read_bytes()


def test_what_a_kept_section_links_to_stays(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    with opened(built) as source:
        elf = elfs.parse(source)
    at = {part.name: index for index, part in enumerate(elf.sections)}
    content = bytearray(built.read_bytes())
    struct.pack_into("<I", content, elf.section_headers_at + at[".comment"] * 64 + 40, at[".symtab"])
    built.write_bytes(content)
    symbols = contents(built, ".symtab"), contents(built, ".strtab")
    report = strip_file(built)
    assert ".debug_info" in report.sections
    assert (contents(built, ".symtab"), contents(built, ".strtab")) == symbols


def contents(path: Path, name: str) -> bytes:
    found = ELFFile(io.BytesIO(path.read_bytes())).get_section_by_name(name)
    return bytes(found.data()) if found else b""


def patched(path: Path, name: str, field: int, value: int) -> Path:
    """Set the 8 bytes at `field` of a section's header."""
    data = bytearray(path.read_bytes())
    elf = ELFFile(io.BytesIO(bytes(data)))
    at = elf.header["e_shoff"] + 64 * elf.get_section_index(name)
    data[at + field : at + field + 8] = value.to_bytes(8, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("align", [1 << 40, (1 << 64) - 1, 3])
def test_an_unloaded_section_that_asks_for_any_alignment_makes_no_large_file(
    align: int, tmp_path: Path
) -> None:
    built = patched(compiled(tmp_path / "lib.so"), ".comment", 0x30, align)
    before, comment = built.stat().st_size, contents(built, ".comment")
    assert strip_file(built).changed
    assert built.stat().st_size < before
    assert contents(built, ".comment") == comment


def test_a_section_that_is_loaded_in_part_leaves_the_file_alone(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    comment = ELFFile(io.BytesIO(built.read_bytes())).get_section_by_name(".comment")
    patched(built, ".comment", 0x20, comment["sh_size"] + 64)
    patched(built, ".comment", 0x18, comment["sh_offset"] - 64)
    assert "section .comment is loaded in part" in strip_file(built).kept


def test_a_file_without_a_section_table_is_left_alone(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    data = bytearray(built.read_bytes())
    end = max(s["p_offset"] + s["p_filesz"] for s in ELFFile(io.BytesIO(bytes(data))).iter_segments())
    data[0x28:0x30], data[0x3C:0x40] = bytes(8), bytes(4)
    built.write_bytes(data[:end])
    assert strip_file(built).kept == "no section table says what lies in it"


def test_a_large_alignment_holds(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so", aligned=0x8000)
    before = answer(built)
    strip_file(built)
    elf = ELFFile(io.BytesIO(built.read_bytes()))
    data = elf.get_section_by_name(".data")
    assert data["sh_addralign"] == 0x8000
    load = next(s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and s.section_in_segment(data))
    assert (load["p_offset"] - load["p_vaddr"]) % 0x8000 == 0 == load["p_align"] % 0x8000
    assert answer(built) == before


@pytest.mark.parametrize("kind", ["-pie", "-no-pie", "-static"])
def test_a_program_still_runs(kind: str, tmp_path: Path) -> None:
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(CODE + MANY)
    made = run(tool("gcc"), "-g", kind, "-DALIGNED=64", source, "-o", program)
    if made.returncode:
        pytest.skip(f"this gcc links no {kind} program: {made.stderr[-200:]}")
    assert run(program).returncode == 0
    assert strip_file(program).changed
    assert run(program).returncode == 0


def test_64k_pages_of_aarch64_stay_whole(tmp_path: Path) -> None:
    built = library(tmp_path / "lib.so", section([cubin("sm_90", 300_000)]), machine=AARCH64)
    built.write_bytes(built.read_bytes().replace(b".comment", b".debug_x"))
    before = memory(built)
    report = strip_file(built)
    assert report.sections == (".debug_x",) and memory(built) == before


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"PK\3\4 a zip file"), "appended"),
        (lambda path: path.write_bytes(b"#!/bin/sh\n"), "no ELF64"),
        (lambda path: path.write_bytes(b""), "no ELF64"),
        (
            lambda path: run(tool("gcc"), "-c", path.with_suffix(".c"), "-DALIGNED=64", "-o", path),
            "object file",
        ),
    ],
)
def test_what_must_stay_as_it_is_is_left_with_the_reason(
    spoil: Callable[[Path], object], why: str, tmp_path: Path
) -> None:
    built = compiled(tmp_path / "lib.so")
    spoil(built)
    before = built.read_bytes()
    report = strip_file(built)
    assert why in report.kept and built.read_bytes() == before


def test_another_name_of_the_inode_keeps_the_old_bytes_and_mode_and_times_stay(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    os.link(built, tmp_path / "cached.so")
    built.chmod(0o555)
    before, status = built.read_bytes(), built.stat()
    strip_file(built)
    assert (tmp_path / "cached.so").read_bytes() == before != built.read_bytes()
    assert (built.stat().st_mode, built.stat().st_mtime_ns) == (status.st_mode, status.st_mtime_ns)


def test_names_that_a_program_can_look_up_stay(tmp_path: Path) -> None:
    built = compiled(tmp_path / "lib.so")
    strip_file(built)
    assert ctypes.CDLL(str(built)).g7(1) == 8


BSS_ALONE = """
PHDRS {
  text PT_LOAD FILEHDR PHDRS FLAGS(5);
  data PT_LOAD FLAGS(6);
  bss PT_LOAD FLAGS(6);
  dynamic PT_DYNAMIC FLAGS(6);
}
SECTIONS {
  . = SIZEOF_HEADERS;
  .hash : { *(.hash) *(.gnu.hash) } :text
  .dynsym : { *(.dynsym) } :text
  .dynstr : { *(.dynstr) } :text
  .rela.dyn : { *(.rela.*) } :text
  .text : { *(.text*) *(.rodata*) *(.eh_frame*) } :text
  . = ALIGN(0x1000);
  .dynamic : { *(.dynamic) } :data :dynamic
  .data : { *(.data*) *(.got*) } :data
  /DISCARD/ : { *(.note*) *(.comment) }
  . = ALIGN(0x1000) + 0x1c30;
  .bss : { *(.bss*) *(COMMON) } :bss
}
"""
"""Memory without bytes in a segment of its own, that begins within a page."""
BSS_CODE = "static char room[5000]; int answer(int i) { room[i] = (char)i; return room[i] + room[4999]; }"


def bss_alone(path: Path) -> Path:
    """A library whose segment without bytes lies among the debug information, as its header says."""
    script = path.with_suffix(".ld")
    script.write_text(BSS_ALONE)
    compiled(path, "-nostdlib", f"-Wl,-T,{script}", "-Wl,--build-id=none,--hash-style=sysv", code=BSS_CODE)
    data, at = bytearray(path.read_bytes()), 64 + 2 * 56
    kind, flags, offset, address, physical, size, *rest = struct.unpack_from("<IIQQQQQQ", data, at)
    assert (kind, size) == (1, 0) and address % 0x1000
    offset = len(data) // 0x1000 * 0x1000 - 0x1000 + address % 0x1000
    struct.pack_into("<IIQQQQQQ", data, at, kind, flags, offset, address, physical, size, *rest)
    path.write_bytes(data)
    return path


def test_a_segment_without_bytes_begins_in_a_page_that_the_file_still_has(tmp_path: Path) -> None:
    built = bss_alone(tmp_path / "lib.so")
    size = built.stat().st_size
    assert answer(built) == "4\n"
    report = strip_file(built)
    assert report.changed and size - built.stat().st_size > 3000
    assert answer(built) == "4\n"  # else the loader clears what it has no page for, and dies of SIGBUS
    *with_bytes, bare = ELFFile(io.BytesIO(built.read_bytes())).iter_segments("PT_LOAD")
    assert bare["p_offset"] < max(s["p_offset"] + s["p_filesz"] for s in with_bytes), "no page of its own"


def test_the_proof_finds_a_segment_without_bytes_whose_page_is_not_there(tmp_path: Path) -> None:
    built, new = bss_alone(tmp_path / "lib.so"), tmp_path / "new.so"
    strip_file(built, to=new)
    with opened(built) as source:
        unread = strip.unread_sections(source, elfs.parse(source))
        proven(source, new, unread)
        data, at = bytearray(new.read_bytes()), 64 + 2 * 56 + 8
        (offset,) = struct.unpack_from("<Q", data, at)
        struct.pack_into("<Q", data, at, offset + len(data) // 0x1000 * 0x1000 + 0x1000)
        new.write_bytes(data)
        with pytest.raises(Wrong, match="no page in the file to begin in"):
            proven(source, new, unread)


def bss_of_large_pages(path: Path) -> Path:
    """A small aarch64 library whose segment without bytes begins in a page of debug information alone."""
    data = bytearray(library(path, section([cubin("sm_90")]), machine=AARCH64).read_bytes())
    place = 0x8730
    segment = (1, 6, place, (1 << 24) + place, (1 << 24) + place, 0, 5000, 0x10000)
    struct.pack_into("<IIQQQQQQ", data, 64 + 2 * 56, *segment)  # instead of the stack's
    comment = next(s for s in ELFFile(io.BytesIO(data)).iter_sections() if s.name == ".comment")
    header = data.index(struct.pack("<QQ", comment["sh_offset"], comment["sh_size"]))
    struct.pack_into("<QQ", data, header, len(data), 0x20000)
    path.write_bytes(data.replace(b".comment", b".stabbed") + bytes(0x20000))
    return path


def test_a_segment_without_bytes_has_its_page_where_pages_are_smaller_than_they_may_be(
    tmp_path: Path,
) -> None:
    built = bss_of_large_pages(tmp_path / "lib.so")
    assert strip_file(built).changed
    size = built.stat().st_size
    (bare,) = (s for s in ELFFile(io.BytesIO(built.read_bytes())).iter_segments() if s["p_vaddr"] >= 1 << 24)
    assert bare["p_offset"] // 0x1000 * 0x1000 < size < 0x10000


def test_the_proof_finds_a_small_page_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = bss_of_large_pages(tmp_path / "lib.so")
    monkeypatch.setattr(strip, "needed_end", lambda segments, page: 0)
    with pytest.raises(Wrong, match="no page in the file to begin in"):
        strip_file(built)


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def _section_header(path: Path, name: str) -> tuple[int, int]:
    with opened(path) as source:
        elf = elfs.parse(source)
    index = next(i for i, part in enumerate(elf.sections) if part.name == name)
    return elf.sections[index].offset, elf.section_headers_at + 64 * index


def _inactive_header(path: Path) -> int:
    with opened(path) as source:
        elf = elfs.parse(source)
    index = max(i for i, part in enumerate(elf.sections) if part.type == strip.SHT_NULL)
    return elf.section_headers_at + 64 * index


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _flip(path, _section_header(path, ".text")[0] + 3),
        lambda path: _flip(path, _section_header(path, ".dynamic")[0] + 8),
        lambda path: _flip(path, _section_header(path, ".comment")[0]),
        lambda path: _flip(path, _section_header(path, ".shstrtab")[0] + 2),
        lambda path: _flip(path, _section_header(path, ".data")[1] + 24),  # where it lies in the file
        lambda path: _flip(path, _section_header(path, ".dynsym")[1] + 40),  # what it links to
        lambda path: _flip(path, _inactive_header(path) + 9),  # the header of one that went
        lambda path: _flip(path, 64 + 56 + 16),  # a segment's address
        lambda path: _flip(path, 64 + 56 + 8),  # a segment's offset
        lambda path: _flip(path, 64 + 56 + 50),  # a segment's alignment
        lambda path: _flip(path, 18),  # the machine
        lambda path: path.write_bytes(path.read_bytes() + b"left"),
    ],
)  # fmt: skip
def test_the_proof_finds_every_kind_of_damage(damage: Callable[[Path], None], tmp_path: Path) -> None:
    built, new = compiled(tmp_path / "lib.so"), tmp_path / "new.so"
    strip_file(built, to=new)
    with opened(built) as source:
        unread = strip.unread_sections(source, elfs.parse(source))
        proven(source, new, unread)
        damage(new)
        with pytest.raises((Wrong, elfs.Malformed)):
            proven(source, new, unread)


def test_the_proof_refuses_a_loaded_section_among_the_dropped(tmp_path: Path) -> None:
    built, new = compiled(tmp_path / "lib.so"), tmp_path / "new.so"
    strip_file(built, to=new)
    with opened(built) as source:
        elf = elfs.parse(source)
        text = next(i for i, part in enumerate(elf.sections) if part.name == ".text")
        with pytest.raises(Wrong, match="is loaded"):
            proven(source, new, strip.unread_sections(source, elf) | {text})


def test_a_library_whose_sections_ask_for_nothing_is_proven_all_the_same(tmp_path: Path) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_80", 90_000), cubin("sm_90", 90_000)]))
    data = bytearray(path.read_bytes())
    with opened(path) as source:
        elf = elfs.parse(source)
    for number in range(len(elf.sections)):  # no section is in memory any more
        at = elf.section_headers_at + number * elfs.SECTION_HEADER.size + 8
        data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    report = slim_file(path, [Capability(9, 0)], to=tmp_path / "new.so")
    assert report.changed and (tmp_path / "new.so").stat().st_size < report.before
