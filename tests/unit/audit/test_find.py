"""Which files of a tree or a wheel are audited, and that none is passed over silently."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from making import cubin, library, section
from sample import HOPPER

from vllm_variants.audit import audit_tree, collect
from vllm_variants.errors import MissingError
from vllm_variants.system import atomic


def test_a_wheel_and_a_tree_give_the_same_audit(tmp_path: Path, tree: Path) -> None:
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tree / "vllm" / "_C.abi3.so", "vllm/_C.abi3.so")

    assert collect([wheel], HOPPER) == collect([tree], HOPPER)


def test_names_of_one_inode_are_counted_once(tree: Path) -> None:
    (tree / "another.so").hardlink_to(tree / "vllm" / "_C.abi3.so")
    (tree / "link.so").symlink_to("another.so")

    assert len(collect([tree], HOPPER)) == 1


def test_what_a_slimming_has_aside_is_no_library_of_the_tree(tree: Path) -> None:
    """It is being written, or was when its writer was killed."""
    before = collect([tree], HOPPER)
    with atomic.new_file(tree / "vllm" / "_C.abi3.so") as new:
        os.write(new.descriptor, (tree / "vllm" / "_C.abi3.so").read_bytes()[:5000])

        assert collect([tree], HOPPER) == before


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nothing does not exist"):
        collect([tmp_path / "nothing"])


def problems(paths: list[Path]) -> dict[str, str]:
    return {library.path: library.problem for library in collect(paths) if library.problem}


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"broken" * 999, b"no zip at all" * 999, b""])
def test_a_wheel_that_is_no_zip_is_a_problem(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(content)

    assert problems([broken]) == {"broken.whl": "cannot be read: no readable wheel (File is not a zip file)"}


def wheel(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """A wheel of two libraries, `vllm/_A.so` and `vllm/_B.so`."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in ("vllm/_A.so", "vllm/_B.so"):
            made = library(path.with_name("made.so"), section([cubin("sm_90", 9000)]))
            archive.write(made, name)
    path.with_name("made.so").unlink()
    return path


def spoil(path: Path, *, at: int, by: bytes, where: bytes = b"PK\x03\x04") -> None:
    """Overwrite the bytes at `at` from the first `where` on."""
    data = bytearray(path.read_bytes())
    start = data.index(where) + at
    data[start : start + len(by)] = by
    path.write_bytes(data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_spoilt_member_is_a_problem_and_the_rest_is_audited(tmp_path: Path, compression: int) -> None:
    damaged = wheel(tmp_path / "made.whl", compression)
    spoil(damaged, at=30 + len("vllm/_A.so"), by=b"\xff" * 60)

    found = {library.path: library.problem for library in collect([damaged])}

    assert found.pop("vllm/_B.so") == ""
    assert [*found] == ["vllm/_A.so"]
    assert found["vllm/_A.so"]


@pytest.mark.parametrize(
    ("at", "by", "says"),
    [
        (8, b"\x01", "encrypted"),
        (10, b"\x63\x00", "compression"),  # method 99
        (6, b"\x63\x00", "version 9.9"),  # needs version 99: the whole directory is refused
    ],
)
def test_an_odd_wheel_is_a_problem(tmp_path: Path, at: int, by: bytes, says: str) -> None:
    odd = wheel(tmp_path / "made.whl")
    spoil(odd, at=at, by=by, where=b"PK\x01\x02")
    (tmp_path / "fine.so").write_bytes(b"")
    library(tmp_path / "fine.so", section([cubin("sm_90", 9000)]))

    assert says in " ".join(problems([odd]).values())
    assert {library.path for library in collect([tmp_path])} > {"fine.so"}  # the rest of the tree
    assert any("made.whl" in name for name in problems([tmp_path]))


def test_a_library_with_a_zip_behind_it_is_a_library(tmp_path: Path) -> None:
    both = library(tmp_path / "signed.so", section([cubin("sm_90", 9000)]))
    archive = wheel(tmp_path / "made.whl").read_bytes()
    both.write_bytes(both.read_bytes() + archive)
    assert zipfile.is_zipfile(both)

    assert [(library.path, library.containers) for library in collect([both])] == [("signed.so", 1)]
    assert [library.path for library in collect([tmp_path])] == [
        "made.whl/vllm/_A.so",
        "made.whl/vllm/_B.so",
        "signed.so",
    ]


def test_a_zip_by_any_name_is_a_wheel(tmp_path: Path) -> None:
    renamed = wheel(tmp_path / "made.whl").rename(tmp_path / "made")

    assert [library.path for library in collect([renamed])] == ["vllm/_A.so", "vllm/_B.so"]


@pytest.mark.parametrize("size", [4, 20, 63, 64, 200, 3000])
def test_a_truncated_library_is_a_problem_without_a_device_too(tmp_path: Path, size: int) -> None:
    whole = library(tmp_path / "made.so", section([cubin("sm_90", 9000)]))
    whole.write_bytes(whole.read_bytes()[:size])

    report = audit_tree(whole, None)

    assert report.libraries[0].problem
    assert (report.verdict, report.passed) == (None, False)
