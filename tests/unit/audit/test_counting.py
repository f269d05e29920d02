"""What is counted in a library, and how each container fits a device."""

from __future__ import annotations

import errno
from pathlib import Path

from making import Made, container, cubin, library, ptx, section
from sample import HOPPER

from vllm_variants.audit import audit_tree
from vllm_variants.audit.library import audit_library
from vllm_variants.fatbin.tree import slim_tree
from vllm_variants.model.capability import Capability, Fit


def test_containers_are_counted_by_their_best_image(tree: Path) -> None:
    (audited,) = audit_tree(tree, HOPPER).libraries

    assert audited.fits == {Fit.NATIVE: 2, Fit.JIT: 1, Fit.NONE: 1}
    assert audited.containers == 4
    assert audited.runs == 2
    assert [str(each.target) for each in audited.jit] == ["8.0"]
    assert audited.foreign > 90_000 + 90_000 + 80_000
    counted = {f"{kind} {target}": group.count for (kind, target), group in audited.images.items()}
    assert counted == {"cubin 8.0": 2, "cubin 9.0": 1, "cubin 9.0a": 1, "cubin 12.0a": 1, "ptx 8.0": 1}


def test_a_slimmed_tree_has_nothing_foreign_and_its_stubs_are_no_code(tree: Path) -> None:
    before = audit_tree(tree, HOPPER).libraries[0]
    slim_tree(tree, [HOPPER], jobs=1)

    (after,) = audit_tree(tree, HOPPER).libraries
    elsewhere = audit_tree(tree, Capability(12, 0)).libraries[0]

    assert after.foreign == 0
    assert after.stubs == 1
    assert (after.fits, after.containers) == (before.fits, before.containers)
    assert elsewhere.runs == 0  # the stub of 12.0a is no machine code


def test_what_slimming_keeps_in_doubt_is_not_foreign(tmp_path: Path) -> None:
    """A Tegra image beside a desktop one stays; the audit of a fresh build must not mind it."""
    library(tmp_path / "made.so", section([cubin("sm_80"), cubin("sm_87")]))

    (audit,) = audit_tree(tmp_path, Capability(8, 9)).libraries

    assert audit.foreign == 0
    assert audit.spare > 0
    assert audit.fits == {Fit.SAME_MAJOR: 1}


def test_a_stray_image_of_the_compilers_default_is_counted(tmp_path: Path) -> None:
    library(
        tmp_path / "made.so", section([cubin("sm_52"), ptx("compute_52")], [cubin("sm_90"), cubin("sm_52")])
    )

    assert audit_tree(tmp_path, HOPPER).libraries[0].stray == 1


def test_what_is_unknown_is_named(tmp_path: Path) -> None:
    library(tmp_path / "made.so", section([Made("sm_90", b"lto", code=8), cubin("sm_90")]))

    (audited,) = audit_tree(tmp_path, HOPPER).libraries

    assert len(audited.unknown) == 1
    assert "kind 0x8" in audited.unknown[0]
    assert audited.fits == {Fit.NATIVE: 1}


def test_containers_elsewhere_are_counted_apart(tmp_path: Path) -> None:
    tables = b"table..." + container(cubin("sm_100", 9000)) + b"table" + container(cubin("sm_90", 500))
    library(tmp_path / "made.so", section([cubin("sm_90")]), more={".cask_resource": tables})

    (audited,) = audit_tree(tmp_path, HOPPER).libraries

    scattered = audited.scattered[".cask_resource"]
    assert (scattered.containers, scattered.foreign) == (2, 9064)
    assert audited.containers == 1


def test_a_file_that_fails_while_it_is_read_is_a_problem(tmp_path: Path) -> None:
    class Failing:
        name, size = "failing.so", 9000

        def at(self, offset: int, length: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    audited = audit_library(Failing(), "failing.so")

    assert audited
    assert audited.problem == "cannot be read: Input/output error"
