"""Flox's expressions: those of the matrix, and the same derivations as the flake's."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from paths import ROOT, flox_call
from real_nix import Nix, NixFailed

from vllm_variants.builders.source.flox import EXPRESSIONS
from vllm_variants.maintain import flox
from vllm_variants.model import matrix
from vllm_variants.model.variants import Variant

MATRIX = matrix.load()


def called_by_flox(root: Path, variant: Variant, system: str) -> str:
    """As Flox's package builder calls a file: callPackage from a nixpkgs of its own."""
    return flox_call(root, EXPRESSIONS / f"{variant.name(MATRIX.default)}.nix", system)


def test_the_folder_holds_what_the_matrix_says_and_nothing_else() -> None:
    assert flox.strays(ROOT, MATRIX) == []
    for path, text in flox.expressions(MATRIX).items():
        assert (ROOT / path).read_text() == text, f"{path} is old: ./vllm-variants docs rewrites it"


def test_a_file_that_is_no_variants_is_found(tmp_path: Path) -> None:
    for path in flox.expressions(MATRIX):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / EXPRESSIONS / "helper.nix").touch()
    assert flox.strays(tmp_path, MATRIX) == [tmp_path / EXPRESSIONS / "helper.nix"]


@pytest.mark.parametrize("variant", MATRIX.variants.values(), ids=lambda variant: variant.short)
def test_it_is_the_derivation_of_the_flake(nix: Nix, checkout: Path, variant: Variant) -> None:
    from_flox = nix.value(f"{called_by_flox(checkout, variant, variant.system)}.drvPath")
    from_flake = nix.flake(f"path:{checkout}#packages.{variant.system}.{variant.short}.drvPath")
    assert from_flox == from_flake


def test_what_flox_reads_of_a_package_can_be_read(nix: Nix, checkout: Path) -> None:
    """Name, version and the whole of meta, as JSON: a function anywhere in meta would fail."""
    variant = MATRIX.variants["sm90"]
    read = nix.value(
        "(package: { inherit (package) name version pname meta; })"
        + called_by_flox(checkout, variant, variant.system)
    )
    assert read["pname"] == "vllm-python312-cuda12_9-sm90"
    assert read["version"] == "0.13.0"
    assert read["meta"]["mainProgram"] == "vllm"


def test_a_variant_of_another_system_says_where_it_is_built(nix: Nix, checkout: Path) -> None:
    variant = MATRIX.variants["sm90-arm64"]
    with pytest.raises(NixFailed, match=r"^sm90-arm64 is built on aarch64-linux, not on x86_64-linux"):
        nix.value(f"{called_by_flox(checkout, variant, 'x86_64-linux')}.drvPath")


def test_nixpkgs_comes_from_the_lock(nix: Nix) -> None:
    lock = json.loads((ROOT / "flake.lock").read_text())["nodes"]
    for name in lock["root"]["inputs"]:
        assert nix.value(f'(import {ROOT}/nix/nixpkgs.nix "{name}").rev') == lock[name]["locked"]["rev"]


def test_the_environment_is_one_that_flox_reads() -> None:
    environment = json.loads((ROOT / ".flox" / "env.json").read_text())
    assert environment == {"name": "vllm-variants", "version": 1}
    manifest = tomllib.loads((ROOT / ".flox" / "env" / "manifest.toml").read_text())
    assert set(manifest["options"]["systems"]) == {variant.system for variant in MATRIX.variants.values()}
    assert manifest["install"], "flox publish wants a package"
    assert "build" not in manifest, "a name in both [build] and pkgs/ is an error"
