"""How many package sets an evaluation makes: each costs 1 to 2 GB of memory with the real nixpkgs."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from real_nix import Nix, point_at_model

from vllm_variants import matrix

MATRIX = matrix.load()
MARK = "trace: a nixpkgs for "

# The model as it is, and a line on stderr whenever it is imported.
COUNTED = """
arguments:
builtins.trace "a nixpkgs for ${arguments.system} ${toString arguments.config.cudaCapabilities or "plain"}"
  (import ./model.nix arguments)
"""

# One package set a variant of the default release, and a plain one a system: nothing twice.
ONE_EACH = Counter(
    [f"{variant.system} {variant.capability}" for variant in MATRIX.variants.values()]
    + [f"{system} plain" for system in matrix.SYSTEMS]
)


@pytest.fixture(scope="module")
def counted(nix: Nix, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout, whose model says when it is imported."""
    root = tmp_path_factory.mktemp("counted") / "vllm-variants"
    shutil.copytree(checkout, root)
    model = root / "tests" / "nix" / "nixpkgs"
    (model / "default.nix").rename(model / "model.nix")
    (model / "default.nix").write_text(COUNTED)
    point_at_model(nix, root)
    # `flake check --no-build` reads the command line's source without copying it: here it is in the store.
    assert nix.flake(f"path:{root}#cli.drvPath")
    return root


def instances(nix: Nix, *arguments: str | Path) -> Counter[str]:
    """The package sets that `nix ARGUMENTS…` makes, each by its system and capabilities."""
    said = nix.said(*arguments, "--no-update-lock-file", "--option", "eval-cache", "false")
    return Counter(line.removeprefix(MARK) for line in said.splitlines() if line.startswith(MARK))


def test_the_count_sees_a_package_set(nix: Nix, counted: Path) -> None:
    """A count of nothing would pass every test below."""
    assert instances(nix, "eval", f"path:{counted}#packages.x86_64-linux.sm90.drvPath") == {
        "x86_64-linux 9.0": 1
    }


def test_flake_check_makes_one_package_set_a_variant_and_a_plain_one_a_system(
    nix: Nix, counted: Path
) -> None:
    check = "flake", "check", "--no-build", "--all-systems", f"path:{counted}"
    assert instances(nix, *check) == ONE_EACH


def test_short_and_full_names_share_their_package_set(nix: Nix, counted: Path) -> None:
    for release in MATRIX.releases.values():
        both = [(name, variant) for variant in MATRIX.variants.values() for name in
                (variant.short, variant.name(release))]  # fmt: skip
        wanted = " ".join(f'set.{variant.system}.releases."{release.name}".{name}' for name, variant in both)
        forced = f"set: map (variant: variant.drvPath) [ {wanted} ]"
        made = instances(nix, "eval", "--json", f"path:{counted}#legacyPackages", "--apply", forced)
        assert set(made.values()) == {1}
        assert len(made) == len(MATRIX.variants)


def test_a_job_of_hydra_is_the_variants_own_proof(nix: Nix, checkout: Path) -> None:
    """The flake's outputs share a plain package set that a variant by itself has to make."""
    for output, proof in (("audits", "audit"), ("gpuChecks", "gpu")):
        for variant in MATRIX.variants.values():
            job = nix.flake(f"path:{checkout}#hydraJobs.{output}.{variant.system}.{variant.short}.drvPath")
            own = f"path:{checkout}#packages.{variant.system}.{variant.short}.tests.{proof}.drvPath"
            assert job == nix.flake(own)
