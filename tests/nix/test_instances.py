"""How many package sets an evaluation makes: each costs 1 to 2 GB of memory with the real nixpkgs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from paths import flox_call
from real_nix import Nix, point_at_model

from vllm_variants.builders.source.flox import EXPRESSIONS
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS

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
    + [f"{system} plain" for system in SYSTEMS]
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
    for release in MATRIX.packaged.values():
        both = [(name, variant) for variant in MATRIX.variants.values() for name in
                (variant.short, variant.name(release))]  # fmt: skip
        wanted = " ".join(f'set.{variant.system}.releases."{release.name}".{name}' for name, variant in both)
        forced = f"set: map (variant: variant.drvPath) [ {wanted} ]"
        made = instances(nix, "eval", "--json", f"path:{counted}#legacyPackages", "--apply", forced)
        assert set(made.values()) == {1}
        assert len(made) == len(MATRIX.variants)


def test_a_variant_by_way_of_flox_makes_its_package_set_alone(nix: Nix, counted: Path) -> None:
    """Beside the nixpkgs that Flox itself brings, which is not counted here."""
    for variant in MATRIX.variants.values():
        file = EXPRESSIONS / f"{variant.name(MATRIX.default)}.nix"
        expression = f"{flox_call(counted, file, variant.system)}.drvPath"
        made = instances(nix, "eval", "--impure", "--json", "--expr", expression)
        assert made == {f"{variant.system} {variant.capability}": 1}


def test_names_and_descriptions_of_all_variants_need_no_package_set(nix: Nix, counted: Path) -> None:
    """Of both releases, under both names, with all that a list of packages shows."""
    homed = {
        (variant.system, release.name, name)
        for variant in MATRIX.variants.values()
        for release in MATRIX.packaged.values()
        for name in (variant.short, variant.name(release))
    }
    paths = " ".join(f'set.{system}.releases."{release}".{name}' for system, release, name in sorted(homed))
    listed = (
        "{ inherit (v) name pname version system type variant capability short release torch; "
        "inherit (v.meta) description platforms mainProgram; }"
    )
    command = (
        "eval",
        "--json",
        f"path:{counted}#legacyPackages",
        "--apply",
        f"set: map (v: {listed}) [ {paths} ]",
    )
    assert len(json.loads(nix.run(*command, "--no-update-lock-file"))) == len(homed) == 40
    assert instances(nix, *command) == {}


def test_flake_show_makes_plain_package_sets_only(nix: Nix, counted: Path) -> None:
    assert instances(nix, "flake", "show", "--all-systems", f"path:{counted}") == {
        f"{system} plain": 1 for system in SYSTEMS
    }


def test_what_is_listed_of_a_variant_is_what_its_package_says(nix: Nix, checkout: Path) -> None:
    """A list reads the plan; the derivation itself must not say otherwise."""
    listed = "name pname version system type variant capability short release torch"
    both = f"v: map (v: {{ inherit (v) {listed}; inherit (v.meta) description platforms mainProgram; }})"
    for variant in MATRIX.variants.values():
        for release in MATRIX.packaged.values():
            attribute = f'legacyPackages.{variant.system}.releases."{release.name}".{variant.short}'
            named, made = nix.flake(f"path:{checkout}#{attribute}", f"{both} [ v v.package ]")
            assert named == made
            assert named["name"] == f"python3.12-{variant.name(release)}-{release.name}"


def test_a_job_of_hydra_is_the_variants_own_proof(nix: Nix, checkout: Path) -> None:
    """The flake's outputs share a plain package set that a variant by itself has to make."""
    for output, proof in (("audits", "audit"), ("gpuChecks", "gpu")):
        for variant in MATRIX.variants.values():
            job = nix.flake(f"path:{checkout}#hydraJobs.{output}.{variant.system}.{variant.short}.drvPath")
            own = f"path:{checkout}#packages.{variant.system}.{variant.short}.tests.{proof}.drvPath"
            assert job == nix.flake(own)
