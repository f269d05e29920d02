"""Rules that every Nix expression of the project keeps; its Nix has no formatter and no linter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT
from real_nix import Nix

FOLDERS = ("nix", "pkgs", ".flox/pkgs", "tests/nix")
EXPRESSIONS = sorted(
    [ROOT / "flake.nix", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.nix"))]
)
LIBRARY = [
    path for path in EXPRESSIONS if path.is_relative_to(ROOT / "nix") or path.is_relative_to(ROOT / "pkgs")
]


def code(path: Path) -> str:
    """An expression without its comments and strings of one line."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r'"(?:[^"\\\n]|\\.)*"|(?m:(?:^|\s)#.*$)', "", text)


def test_every_file_parses(nix: Nix) -> None:
    instantiate = Nix(str(Path(nix.program).with_name("nix-instantiate")), nix.environment)
    assert instantiate.run("--parse", *EXPRESSIONS)


@pytest.mark.parametrize("path", EXPRESSIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_with(path: Path) -> None:
    assert not re.search(r"\bwith\b\s+[\w.(]+.*;", code(path))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_library_says_what_it_is_and_its_type(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("/**\n")
    is_data_or_overlay = path.parent.name == "mends" or path.name in {"torch-wheels.nix", "default.nix"}
    assert is_data_or_overlay or "# Type" in text


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_derivation_knows_how_many_cores_build_it(path: Path) -> None:
    """The number of cores is given on the command line, so that it never changes a hash."""
    assert not re.search(r"NIX_BUILD_CORES|MAX_JOBS|enableParallelBuilding", path.read_text(encoding="utf-8"))


def test_nothing_imports_from_a_derivation(nix: Nix) -> None:
    """The tests' own Nix refuses it, so a mistake here fails every other test as well."""
    assert nix.run("config", "show", "allow-import-from-derivation").strip() == "false"
