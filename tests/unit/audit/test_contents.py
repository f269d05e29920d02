"""What a release's libraries should hold, and how that is derived from its wheels."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import toml
from making import capabilities, cubin, library, ptx, section
from sample import HOPPER, SAME_WHEEL, expectations

from vllm_variants.audit import Verdict, audit_tree
from vllm_variants.audit import contents as expected
from vllm_variants.audit.derive import derive
from vllm_variants.errors import InputError, UsageError
from vllm_variants.fatbin.tree import slim_tree
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability

ON_HOPPER = "{ native = 2, jit = 1 }"
ON_120 = "{ native = 1, jit = 1 }"


@pytest.mark.parametrize(
    ("text", "device", "what"),
    [
        (SAME_WHEEL, "9.0", None),
        (SAME_WHEEL, "8.9", None),
        (
            SAME_WHEEL.replace(ON_HOPPER, "{ native = 4 }"),
            "9.0",
            "1 of 4 containers have nothing for sm90",
        ),
        (
            SAME_WHEEL.replace(ON_HOPPER, "{ native = 3 }"),
            "9.0",
            "1 containers lost their machine code",
        ),
        (
            SAME_WHEEL.replace("= 4", "= 9").replace(ON_HOPPER, "{ native = 7 }"),
            "9.0",
            None,
        ),  # compiled for one SM
        (
            SAME_WHEEL.replace("= 4", "= 9").replace(ON_120, "{ native = 7 }"),
            "10.0",
            None,
        ),  # nothing expected
        (SAME_WHEEL.replace("= 4", "= 9") + "sm70 = { native = 5 }\n", "7.0", "nothing in it runs on sm70"),
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
    for release in rows.releases.values():
        for variant in rows.of(release).values():
            known = expected.load(release.name, variant.system)
            assert known, (release.name, variant.system)
            usable = {
                name: each.by_sm[variant.capability.sm].usable for name, each in known.libraries.items()
            }
            old = "vllm/_C.abi3.so"
            kernels = usable[old if old in usable else "vllm/_C_stable_libtorch.abi3.so"]
            assert bool(kernels) == (release.stack.cuda < "13" or variant.short != "sm70")
            flash3 = usable["vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"]
            assert bool(flash3) == (
                variant.capability.major in ((8, 9) if release.name == "0.11.2" else (9,))
            )


def test_a_release_says_how_its_code_fits_a_related_card() -> None:
    """Of a B300 and a GB10 nothing is native; family code and code of the same major run."""
    for sm in ("10.3", "12.1"):
        found = expected.load("0.33.0", "aarch64-linux")
        assert found
        row = found.on(Capability.parse(sm))
        assert row
        facts = row.as_dict()
        assert not facts["native"]
        assert facts["family"] > 0 < facts["same-major"]
        assert facts["jit"] > 76  # FlashAttention 2 has nothing later than 8.0
        assert sum(facts.values()) == 2 * facts["containers"]


@pytest.mark.parametrize("row", ["[2, 1]", "{ none = 4 }", "{ native = 5 }", "{ native = -1, jit = 2 }"])
def test_a_table_of_another_form_is_refused(row: str) -> None:
    document = toml.loads(f'[x86_64-linux."vllm/_C.abi3.so"]\ncontainers = 4\nsm90 = {row}\n')
    with pytest.raises(InputError, match="not understood"):
        expected.read(document, "1.0.0", "x86_64-linux")


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
