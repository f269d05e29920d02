"""A library that was cut off, wherever, is never taken for one without device code."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from making import cubin, library, section

from vllm_variants.audit import collect
from vllm_variants.audit.why import why
from vllm_variants.errors import InputError
from vllm_variants.fatbin.source import opened
from vllm_variants.model.capability import Capability

CODE = section([cubin("sm_90", 1000)], [cubin("sm_80", 600)])


def written(path: Path) -> Path:
    """A library of 4 KB, made by hand."""
    return library(path, CODE)


def linked(path: Path) -> Path:
    """A library as gcc and ld make it."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc to link a library")
    (path.parent / "code").write_bytes(CODE)
    (path.parent / "made.s").write_text('.section .nv_fatbin,"a"\n.incbin "code"\n')
    command = ["gcc", "-shared", "-nostdlib", "-Wl,-z,noseparate-code", "-o", path.name, "made.s"]
    subprocess.run(command, cwd=path.parent, check=True)
    return path


@pytest.mark.parametrize("make", [written, linked])
def test_a_library_cut_off_at_any_byte_is_a_problem(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    whole = make(tmp_path / "made.so")
    assert [(found.containers, found.problem) for found in collect([whole])] == [(2, "")]
    data, cut = whole.read_bytes(), tmp_path / "cut"
    cut.mkdir()
    for size in range(1, len(data)):
        (cut / str(size)).write_bytes(data[:size])

    problems = {int(found.path) for found in collect([cut]) if found.problem}

    assert problems == set(range(1, len(data)))


@pytest.mark.parametrize("size", [1, 63, 2324])
def test_a_library_cut_off_in_a_wheel_is_a_problem(tmp_path: Path, size: int) -> None:
    data = written(tmp_path / "made.so").read_bytes()[:size]
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as wheel:
        wheel.writestr("vllm/_C.so", data)

    (found,) = collect([tmp_path / "made.whl"])

    assert found.problem


def test_fat_binaries_without_a_section_table_are_a_problem(tmp_path: Path) -> None:
    """As `sstrip` leaves a library: it loads and runs, and nothing says where its device code is."""
    path = written(tmp_path / "made.so")
    data = bytearray(path.read_bytes())
    data[40:48], data[60:64] = bytes(8), bytes(4)
    path.write_bytes(data)

    (found,) = collect([path])

    assert "a fat binary in a file without a section table" in found.problem
    path.write_bytes(data.replace(b"\x50\xed\x55\xba", bytes(4)))
    assert collect([path]) == ()  # without fat binaries it is any program


def test_why_says_of_a_library_cut_off_what_the_audit_says(tmp_path: Path) -> None:
    path = written(tmp_path / "made.so")
    os.truncate(path, 40)
    with opened(path) as source, pytest.raises(InputError, match="ends within its ELF header"):
        why(source, Capability(9, 0))
