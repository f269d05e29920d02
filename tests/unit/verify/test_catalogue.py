"""The data about checks agrees with the scripts, with the matrix, and with itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vllm_variants.errors import InputError, UsageError
from vllm_variants.model import matrix
from vllm_variants.verify import catalogue
from vllm_variants.verify.catalogue import CHECKS

ALL = catalogue.read()
BY_NAME = {check.name: check for check in ALL}


def defined() -> dict[str, str]:
    """Check → script, read from the `@check("…")` decorators without importing torch."""
    found = {}
    for script in CHECKS.glob("*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "check":
                    (name,) = decorator.args
                    assert isinstance(name, ast.Constant)
                    found[str(name.value)] = script.stem
    return found


def test_every_check_has_an_expectation_and_every_expectation_a_check() -> None:
    assert {check.name: check.script for check in ALL} == defined()


def test_expectations_name_sms_and_releases_of_the_matrix() -> None:
    sms = {variant.capability.sm for variant in matrix.load().every_variant}
    for check in ALL:
        for support in (check.support, *check.releases.values()):
            assert (support.ok or frozenset()) | support.open <= sms, check.name
            assert not (support.ok or frozenset()) & support.open, check.name
        assert set(check.releases) <= set(matrix.load().releases), check.name


def test_every_variant_must_prove_something_with_every_release() -> None:
    for release in matrix.load().releases.values():
        for variant in matrix.load().of(release).values():
            expected = [check.expected(release.name, variant.capability.sm) for check in ALL]
            assert expected.count("ok") > 30, (release.name, variant.short)


@pytest.mark.parametrize(
    ("name", "release", "sm", "expected"),
    [
        ("norm.rms_norm", "0.13.0", "sm70", "ok"),
        ("flash_attention.fa2", "0.13.0", "sm75", "unsupported"),
        ("flash_attention.fa2", "0.13.0", "sm120", "ok"),
        ("flash_attention.fa3", "0.13.0", "sm80", "unsupported"),
        ("flash_attention.fa3", "0.11.2", "sm80", "ok"),
        ("flash_attention.fa3", "0.11.2", "sm86", "unsupported"),
        ("machete.gptq_4bit", "0.13.0", "sm100", "unsupported"),
        ("allspark.w8a16", "0.13.0", "sm90", "unsupported"),
        ("scaled_mm.fp4", "0.13.0", "sm100", "ok"),
        ("scaled_mm.int8", "0.13.0", "sm100", "unsupported"),
        ("moe.cutlass_fp8", "0.11.2", "sm120", "unsupported"),
        ("scaled_mm.int8_azp", "0.13.0", "sm100", "open"),
        ("attention.paged_v1", "0.13.0", "sm90", "ok"),
        ("attention.paged_v1", "0.33.0", "sm90", "unsupported"),
        ("scaled_mm.sparse_fp8", "0.13.0", "sm100", "open"),
        ("scaled_mm.sparse_fp8", "0.33.0", "sm90", "unsupported"),
        ("marlin.gptq_4bit", "0.13.0", "sm75", "unsupported"),
        ("marlin.gptq_4bit", "0.33.0", "sm75", "ok"),
        ("flash_attention.fa4", "0.13.0", "sm90", "unsupported"),
        ("flash_attention.fa4", "0.33.0", "sm103", "ok"),
        ("flash_mla.sparse", "0.33.0", "sm121", "unsupported"),
        ("scaled_mm.fp4", "0.33.0", "sm121", "ok"),
        ("cutlass_mla.decode", "0.33.0", "sm90", "unsupported"),
        ("cutlass_mla.decode", "0.33.0", "sm103", "ok"),
        ("indexer.gather", "0.33.0", "sm90", "ok"),
        ("indexer.cooperative_top_k", "0.33.0", "sm120", "unsupported"),
        ("indexer.cooperative_top_k", "0.13.0", "sm90", "unsupported"),
        ("deep_gemm.mqa_logits", "0.33.0", "sm90", "ok"),
    ],
)
def test_known_expectations(name: str, release: str, sm: str, expected: str) -> None:
    assert BY_NAME[name].expected(release, sm) == expected


def test_selection_by_name_group_and_pattern() -> None:
    def names(*patterns: str) -> list[str]:
        return [check.name for check in catalogue.select(ALL, patterns)]

    assert names("norm.rms_norm") == ["norm.rms_norm"]
    assert names("machete") == ["machete.gptq_4bit", "machete.gptq_8bit", "machete.awq_4bit"]
    assert set(names("*fp8*")) >= {"scaled_mm.fp8", "flash_attention.fa3_fp8", "marlin.fp8"}
    assert len(names()) == len(ALL)
    assert names("moe", "import.device") == [
        check.name for check in ALL if check.name.startswith("moe.") or check.name == "import.device"
    ]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no check is called 'mos'") as refused:
        catalogue.select(ALL, ["mos"])
    assert "moe" in (refused.value.hint or "")


@pytest.mark.parametrize("text", ["check = 3", '[check."a.b"]\nlimit = 1', "not toml"])
def test_broken_data_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_text(text)
    with pytest.raises(InputError, match="is broken"):
        catalogue.read(file)


def test_checks_import_nothing_of_the_package() -> None:
    for script in CHECKS.glob("*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level < 2:
                modules = [node.module or ""]
            for module in modules:
                assert not module.startswith("vllm_variants"), script.name
