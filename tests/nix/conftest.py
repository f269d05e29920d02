"""A real Nix, and a copy of this checkout whose flake.lock points at the model of nixpkgs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from real_nix import Nix, NixFailed, point_at_model

sys.path.append(str(ROOT / "tests" / "unit" / "fatbin"))  # making.py: libraries made by hand

# What the flake reads. The command line's package needs the whole Python tree.
PARTS = (
    ".flox",
    "LICENSE",
    "advisories",
    "expectations",
    "flake.lock",
    "flake.nix",
    "locks",
    "nix",
    "pkgs",
    "pyproject.toml",
    "python",
    "schemas",
    "tests/nix",
    "variants.toml",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "nix" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.nix)


@pytest.fixture(scope="session")
def nix() -> Nix:
    program = shutil.which("nix") or _from_debian()
    settings = """
        experimental-features = nix-command flakes
        allow-import-from-derivation = false
        substituters =
        flake-registry =
        sandbox = false
        warn-dirty = false
    """
    return Nix(program, {**os.environ, "NIX_CONFIG": "\n".join(map(str.strip, settings.splitlines()))})


@pytest.fixture(scope="session")
def building_nix(nix: Nix) -> Nix:
    """A Nix that builds the model: without a sandbox, into a store that programs run from."""
    probe = """derivation {
        name = "probe"; system = builtins.currentSystem;
        builder = "/bin/sh"; args = [ "-c" "PATH=/usr/bin:/bin; mkdir $out" ];
    }"""
    try:
        path = nix.build("--impure", "--expr", probe)
    except NixFailed as error:
        pytest.skip(f"this Nix cannot build without a sandbox: {error}")
    if not path.is_dir():
        pytest.skip(f"this Nix builds into a store elsewhere: {path} is not there")
    return nix


@pytest.fixture(scope="session")
def checkout(nix: Nix, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout with the model in flake.lock, and this test's own Python as the model's."""
    root = tmp_path_factory.mktemp("checkout") / "vllm-variants"
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (root / "README.md").write_text("")
    (root / "tests/nix/nixpkgs/interpreter").write_text(f"{sys.executable}\n")
    point_at_model(nix, root)
    return root


def _from_debian() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    prefix = cache / "vllm-variants" / "nix-on-debian"
    script = Path(__file__).parent / "nix-on-debian.sh"
    done = subprocess.run(["sh", script, prefix], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    return str(prefix / "bin" / "nix")
