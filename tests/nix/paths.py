"""Where the tests find the checkout and the model of nixpkgs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "nix" / "nixpkgs"


def flox_call(root: Path, file: Path, system: str) -> str:
    """As Flox's package builder calls a file of the checkout: callPackage from a nixpkgs of its own."""
    nixpkgs = f'import {MODEL} {{ system = "{system}"; config.allowUnfree = true; }}'
    return f"(({nixpkgs}).callPackage {root / file} {{ }})"
