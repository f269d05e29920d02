"""Audits: what is counted, what is judged, and what a release's expectations add."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

import pytest
import toml
from making import Made, capabilities, container, cubin, library, ptx, section

from vllm_variants.audit import Verdict, audit_tree, collect
from vllm_variants.audit import contents as expected
from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.derive import derive
from vllm_variants.audit.library import audit_library
from vllm_variants.audit.report import AuditReport
from vllm_variants.audit.why import why
from vllm_variants.errors import InputError, MissingError, UsageError
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.tree import slim_tree
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability, Fit

(HOPPER,) = capabilities("9.0")
(ADA,) = capabilities("8.9")
CODE = section(
    [cubin("sm_80", 90_000), cubin("sm_90", 9000)],
    [cubin("sm_80", 90_000), ptx("compute_80", 5000)],
    [cubin("sm_90a", 80_000)],
    [cubin("sm_120a", 80_000)],
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "vllm").mkdir(parents=True)
    library(tmp_path / "tree" / "vllm" / "_C.abi3.so", CODE)
    (tmp_path / "tree" / "vllm" / "text.py").write_text("x" * 9000)
    return tmp_path / "tree"


def found(report: AuditReport) -> list[tuple[str, str]]:
    return [(str(finding.verdict), finding.what) for finding in report.findings]


def test_containers_are_counted_by_their_best_image(tree: Path) -> None:
    (audited,) = audit_tree(tree, HOPPER).libraries

    assert audited.fits == {Fit.NATIVE: 2, Fit.JIT: 1, Fit.NONE: 1}
    assert audited.containers == 4
    assert audited.runs == 2
    assert [str(each.target) for each in audited.jit] == ["8.0"]
    assert audited.foreign > 90_000 + 90_000 + 80_000
    counted = {f"{kind} {target}": held.images for (kind, target), held in audited.held.items()}
    assert counted == {"cubin 8.0": 2, "cubin 9.0": 1, "cubin 9.0a": 1, "cubin 12.0a": 1, "ptx 8.0": 1}


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (section([cubin("sm_90", 9000)]), Verdict.PASS),
        (section([cubin("sm_90")], [ptx("compute_80", 900)]), Verdict.JIT),
        (section([cubin("sm_90"), cubin("sm_80", 90_000)], [ptx("compute_80")]), Verdict.FOREIGN),
        (section([cubin("sm_90"), cubin("sm_80", 300)]), Verdict.PASS),  # less than a hole: nothing to gain
        (b"\x07" * 400, Verdict.MISSING),  # unreadable
    ],
)
def test_the_verdict_is_the_worst_finding(tmp_path: Path, code: bytes, verdict: Verdict) -> None:
    library(tmp_path / "made.so", code)

    report = audit_tree(tmp_path, HOPPER)

    assert report.verdict is verdict
    assert report.passed == (verdict is not Verdict.MISSING)


def test_the_newest_ptx_decides_which_driver_compiles_all(tmp_path: Path) -> None:
    old = Made("compute_80", b".version 8.5", header_size=80, version=(8, 5))
    library(tmp_path / "a.so", section([ptx("compute_80")], [cubin("sm_90"), ptx("compute_90")]))
    library(tmp_path / "b.so", section([old]))
    report = audit_tree(tmp_path, HOPPER)
    assert report.as_dict()["totals"]["jit_driver"] == 575
    assert {lib.path: [each.version for each in lib.jit] for lib in report.libraries} == {
        "a.so": [(8, 8)], "b.so": [(8, 5)],
    }  # fmt: skip
    assert [what.rpartition("must be ")[2] for _, what in found(report)] == [
        "575 or newer for that", "555 or newer for that",
    ]  # fmt: skip
    assert audit_tree(tmp_path, None).as_dict()["totals"]["jit_driver"] is None


def test_without_a_device_there_is_no_verdict(tree: Path) -> None:
    report = audit_tree(tree, None)

    assert report.verdict is None
    assert report.passed
    assert report.libraries[0].device_bytes > 300_000


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


def expectations(text: str) -> Expectations:
    read = expected.read(toml.loads(text), "0.0.0", "x86_64-linux")
    assert read
    return read


SAME_WHEEL = (
    '[x86_64-linux."vllm/_C.abi3.so"]\ncontainers = 4\nsm89 = [2, 0]\nsm90 = [2, 1]\nsm120 = [1, 1]\n'
)


@pytest.mark.parametrize(
    ("text", "device", "what"),
    [
        (SAME_WHEEL, "9.0", None),
        (SAME_WHEEL, "8.9", None),
        (SAME_WHEEL.replace("[2, 1]", "[4, 0]"), "9.0", "1 of 4 containers have nothing for sm90"),
        (SAME_WHEEL.replace("[2, 1]", "[3, 0]"), "9.0", "1 containers lost their machine code"),
        (SAME_WHEEL.replace("= 4", "= 9").replace("[2, 1]", "[7, 0]"), "9.0", None),  # compiled for one SM
        (SAME_WHEEL.replace("= 4", "= 9").replace("[1, 1]", "[7, 0]"), "10.0", None),  # nothing expected
        (SAME_WHEEL.replace("= 4", "= 9") + "sm70 = [5, 0]\n", "7.0", "nothing in it runs on sm70"),
        (SAME_WHEEL.replace("_C.abi3", "_other"), "9.0", "is not there"),
    ],
)
def test_expectations_say_what_is_missing(tree: Path, text: str, device: str, what: str | None) -> None:
    report = audit_tree(tree, Capability.parse(device), expectations(text))

    assert [f.what for f in report.findings if f.verdict is Verdict.MISSING] == ([what] if what else [])
    assert report.passed == (what is None)


def test_a_tree_slimmed_to_another_device_fails(tree: Path) -> None:
    slim_tree(tree, [Capability(8, 0)], jobs=1)

    report = audit_tree(tree, HOPPER, expectations(SAME_WHEEL))

    assert report.verdict is Verdict.MISSING


def test_every_release_of_the_matrix_has_expectations_for_every_variant() -> None:
    rows = matrix.load()
    for release in rows.releases:
        for variant in rows.variants.values():
            known = expected.load(release, variant.system)
            assert known, (release, variant.system)
            usable = {
                name: each.by_sm[variant.capability.sm].usable for name, each in known.libraries.items()
            }
            assert usable["vllm/_C.abi3.so"] > 0
            flash3 = usable["vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"]
            assert bool(flash3) == (variant.capability.major in ((9,) if release == "0.13.0" else (8, 9)))


def test_expectations_are_derived_from_wheels(tmp_path: Path, tree: Path) -> None:
    wheel = tmp_path / "vllm-0.0.0-cp38-abi3-manylinux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tree / "vllm" / "_C.abi3.so", "vllm/_C.abi3.so")

    text = derive([wheel], capabilities("8.9", "9.0", "12.0"))

    assert toml.loads(text) == toml.loads(SAME_WHEEL)
    assert f"audit --derive {wheel.name} > expectations/0.0.0.toml" in text
    assert audit_tree(tree, HOPPER, expectations(text)).passed


def test_deriving_wants_the_wheels_of_one_release(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one release"):
        derive([tmp_path / "vllm-1.0.0-x.whl", tmp_path / "vllm-2.0.0-x.whl"], [HOPPER])


def test_a_wheel_and_a_tree_give_the_same_audit(tmp_path: Path, tree: Path) -> None:
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tree / "vllm" / "_C.abi3.so", "vllm/_C.abi3.so")

    assert collect([wheel], HOPPER) == collect([tree], HOPPER)


def test_names_of_one_inode_are_counted_once(tree: Path) -> None:
    (tree / "another.so").hardlink_to(tree / "vllm" / "_C.abi3.so")
    (tree / "link.so").symlink_to("another.so")

    assert len(collect([tree], HOPPER)) == 1


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


def test_a_file_that_fails_while_it_is_read_is_a_problem(tmp_path: Path) -> None:
    class Failing:
        name, size = "failing.so", 9000

        def at(self, offset: int, length: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    audited = audit_library(Failing(), "failing.so")

    assert audited
    assert audited.problem == "cannot be read: Input/output error"


def test_every_library_of_an_expected_name_is_held_to_it(tree: Path) -> None:
    """A second copy in one tree, slimmed to another device, is not hidden by the first."""
    copy = tree / "zz" / "vllm"
    copy.mkdir(parents=True)
    library(
        copy / "_C.abi3.so",
        section([cubin("sm_80")] * 1, [cubin("sm_80")], [cubin("sm_80")], [ptx("compute_100")]),
    )

    report = audit_tree(tree, HOPPER, expectations(SAME_WHEEL))

    assert [finding.library for finding in report.findings if finding.verdict is Verdict.MISSING] == [
        "zz/vllm/_C.abi3.so"
    ]


def test_why_groups_containers_and_gives_each_image_its_reason(tree: Path) -> None:
    with opened(tree / "vllm" / "_C.abi3.so") as source:
        sets = why(source, ADA)

    told = {str(each.as_dict()["runs"]): dict(each.reasons) for each in sets}
    assert told["sm_80"]["sm_80"] == "runs: machine code for 8.0 suits later minors of major 8, here 8.9"
    assert {each.containers for each in sets} == {1}
    nothing = [dict(each.reasons) for each in sets if not each.choice]
    assert {"sm_90a": "cannot run: `a` code is for exactly 9.0"} in nothing


def test_why_refuses_what_is_no_library(tree: Path) -> None:
    with opened(tree / "vllm" / "text.py") as source, pytest.raises(InputError, match="no ELF64 library"):
        why(source, ADA)
