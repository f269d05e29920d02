"""The flake's outputs, evaluated by a real Nix on the model of nixpkgs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import MODEL, ROOT
from real_nix import Nix, NixFailed

from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS
from vllm_variants.model.variants import Release

MATRIX = matrix.load()
X86, ARM = "x86_64-linux", "aarch64-linux"


def inputs(release: Release) -> str:
    return "nixpkgs" if release == MATRIX.default else f"nixpkgs-{release.name.replace('.', '_')}"


def test_every_release_has_an_input_with_its_revision() -> None:
    lock = json.loads((ROOT / "flake.lock").read_text())
    locked = {
        name: lock["nodes"][node]["locked"]["rev"] for name, node in lock["nodes"]["root"]["inputs"].items()
    }
    assert locked == {inputs(release): release.nixpkgs for release in MATRIX.packaged.values()}


@pytest.mark.parametrize("release", MATRIX.packaged.values(), ids=lambda release: release.name)
def test_the_flake_asks_for_what_is_locked(release: Release) -> None:
    url = f'{inputs(release)}.url = "github:NixOS/nixpkgs/{release.nixpkgs}";'
    assert url in (ROOT / "flake.nix").read_text()


def test_names_are_those_of_the_python_side(nix: Nix, checkout: Path) -> None:
    for system in SYSTEMS:
        homed = [variant for variant in MATRIX.variants.values() if variant.system == system]
        expected = {name for v in homed for name in (v.short, v.name(MATRIX.default))} | {"cli", "default"}
        assert set(nix.flake(f"path:{checkout}#packages.{system}", "builtins.attrNames")) == expected


def test_ten_variants_of_both_releases_evaluate_for_their_own_sm(nix: Nix, checkout: Path) -> None:
    facts = (
        "v: { inherit (v) drvPath capability version pname; "
        "flags = v.cmakeFlags; platforms = v.meta.platforms; }"
    )
    for variant in MATRIX.variants.values():
        for release in MATRIX.packaged.values():
            found = nix.flake(
                f'path:{checkout}#legacyPackages.{variant.system}.releases."{release.name}".{variant.short}',
                facts,
            )
            assert found["drvPath"].endswith(f"-{variant.name(release)}-{release.name}.drv")
            assert found["flags"] == [f"-DTORCH_CUDA_ARCH_LIST:STRING={variant.capability}"]
            assert found["capability"] == str(variant.capability)
            assert found["version"] == release.name
            assert found["pname"] == variant.name(release)
            assert found["platforms"] == [variant.system]


def test_short_and_full_names_are_one_derivation(nix: Nix, checkout: Path) -> None:
    paths = nix.flake(f"path:{checkout}#packages.{X86}", "builtins.mapAttrs (_: package: package.drvPath)")
    variants = [v for v in MATRIX.variants.values() if v.system == X86]
    assert {paths[v.short] for v in variants} == {paths[v.name(MATRIX.default)] for v in variants}
    assert len({paths[v.short] for v in variants}) == len(variants)
    assert paths["default"] == paths["cli"]


def test_a_variant_of_another_system_is_refused_with_the_system_that_has_it(nix: Nix, checkout: Path) -> None:
    with pytest.raises(NixFailed) as refused:
        nix.run("build", "--no-update-lock-file", "--system", X86, f"path:{checkout}#sm100-arm64")
    assert str(refused.value) == (
        f"sm100-arm64 is built on {ARM}, not on {X86}: build it there, "
        f"or here with a builder of that system: .#packages.{ARM}.sm100-arm64"
    )


def test_a_nixpkgs_with_another_vllm_is_refused_with_both_versions(nix: Nix, checkout: Path) -> None:
    with pytest.raises(NixFailed) as refused:
        nix.run("eval", "--no-write-lock-file", f"path:{checkout}#packages.{X86}.sm90.drvPath",
                "--override-input", "nixpkgs", f"path:{MODEL}?dir=releases/0.11.2")  # fmt: skip
    assert str(refused.value) == (
        'this nixpkgs packages vLLM 0.11.2, and release 0.13.0 was asked for: ask for release "0.11.2", '
        f"or give the nixpkgs that packages 0.13.0 ({MATRIX.default.nixpkgs})"
    )


def test_flake_check_passes(building_nix: Nix, checkout: Path) -> None:
    building_nix.run("flake", "check", "--no-update-lock-file", f"path:{checkout}")
    building_nix.run(
        "flake", "check", "--all-systems", "--no-build", "--no-update-lock-file", f"path:{checkout}"
    )


def test_the_lock_is_whole_and_fits_the_flake(nix: Nix, tmp_path: Path) -> None:
    """Nix would otherwise want to write it, which needs the network."""
    for name in ("flake.nix", "flake.lock"):
        shutil.copy(ROOT / name, tmp_path)
    told = json.loads(nix.run("flake", "metadata", "--json", "--no-update-lock-file", f"path:{tmp_path}"))
    for name, node in told["locks"]["nodes"].items():
        if name != "root":
            assert node["locked"]["narHash"].startswith("sha256-")
            assert node["locked"]["lastModified"] > 1_700_000_000


def test_flake_show_names_every_output(nix: Nix, checkout: Path) -> None:
    shown = json.loads(
        nix.run("flake", "show", "--json", "--all-systems", "--no-update-lock-file", f"path:{checkout}")
    )
    expected = {"apps", "checks", "devShells", "formatter", "hydraJobs", "legacyPackages", "lib", "overlays"}
    assert set(shown) == expected | {"packages"}
    assert shown["packages"][X86]["sm90"]["description"] == (
        "vLLM 0.13.0 for Hopper, SM 9.0, CUDA 12.9: H100, H200, H800, H20"
    )
    assert set(shown["hydraJobs"]) == {"packages", "audits", "gpuChecks"}


def test_hydra_has_each_job_once(nix: Nix, checkout: Path) -> None:
    names = "builtins.mapAttrs (_: builtins.mapAttrs (_: builtins.attrNames))"
    shorts = {
        system: sorted(v.short for v in MATRIX.variants.values() if v.system == system) for system in SYSTEMS
    }
    jobs = nix.flake(f"path:{checkout}#hydraJobs", names)
    assert jobs == {"packages": shorts, "audits": shorts, "gpuChecks": shorts}


def test_the_overlay_brings_the_variants_into_ones_own_packages(nix: Nix, checkout: Path) -> None:
    brought = nix.value(
        f"""
        let
          flake = builtins.getFlake "path:{checkout}";
          overlays = [ flake.overlays.default ];
          pkgs = import {MODEL} {{ system = "{ARM}"; config = {{ }}; inherit overlays; }};
        in {{
          names = builtins.attrNames pkgs.vllmVariants;
          same = pkgs.vllmVariants.sm90-arm64.drvPath == flake.packages.{ARM}.sm90-arm64.drvPath;
        }}
        """
    )
    assert brought["same"]
    assert "sm90" not in brought["names"]


def test_gpu_checks_run_only_where_a_card_is(nix: Nix, checkout: Path) -> None:
    features = nix.flake(
        f"path:{checkout}#legacyPackages.{X86}.gpuChecks.sm90", "check: check.requiredSystemFeatures"
    )
    assert features == ["cuda"]
    with pytest.raises(NixFailed, match=r"features \{cuda\} is required"):
        nix.run("build", "--no-link", "--no-update-lock-file", f"path:{checkout}#gpuChecks.sm90")


def test_the_shell_has_the_projects_tools(nix: Nix, checkout: Path) -> None:
    tools = nix.flake(
        f"path:{checkout}#devShells.{X86}.default", "shell: map (tool: tool.name) shell.nativeBuildInputs"
    )
    assert any(name.startswith("nix-prefetch-github-") for name in tools)
    assert any(name.startswith("python3-") for name in tools)


def test_the_command_line_runs_out_of_the_store(building_nix: Nix, checkout: Path) -> None:
    listed = building_nix.run("run", "--no-update-lock-file", f"path:{checkout}", "--", "list", "--json")
    assert json.loads(listed)
    with pytest.raises(NixFailed, match="VARIANT or --result or --list is required"):
        building_nix.run("run", "--no-update-lock-file", f"path:{checkout}#verify")
    help_text = building_nix.run("run", "--no-update-lock-file", f"path:{checkout}#cli", "--", "--help")
    assert "detect" in help_text


def test_the_command_lines_hash_moves_only_with_what_it_is_made_of(
    nix: Nix, checkout: Path, tmp_path: Path
) -> None:
    before = nix.flake(f"path:{checkout}#cli.drvPath")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", checkout, copy], check=True)
    (copy / "docs").mkdir()
    (copy / "docs" / "more.md").write_text("more")
    assert nix.flake(f"path:{copy}#cli.drvPath") == before
    with (copy / "variants.toml").open("a") as file:
        file.write("# an edit\n")
    assert nix.flake(f"path:{copy}#cli.drvPath") != before


def test_the_audit_is_a_check_of_a_built_variant(
    building_nix: Nix, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "e2e"))
    from source_model import model

    with_code = "--override-input", "nixpkgs", f"path:{model(tmp_path / 'nixpkgs')}"
    report = building_nix.build("--no-write-lock-file", *with_code, f"path:{checkout}#audits.sm90")
    audited = json.loads(report.read_text())
    assert audited["roots"][0].endswith("-sm90-0.13.0"), audited
    assert any(name.endswith("-torch-2.9.1") for name in audited["roots"]), "the closure is audited too"
    assert (audited["capability"], audited["release"], audited["verdict"]) == ("9.0", "0.13.0", "pass")


def test_the_audit_fails_where_vllms_libraries_are_not_there(building_nix: Nix, checkout: Path) -> None:
    """The model leaves a text where vLLM has its extensions."""
    with pytest.raises(NixFailed, match=r"exit code 5.*_C.abi3\.so: is not there"):
        building_nix.build("--no-update-lock-file", f"path:{checkout}#audits.sm90")
