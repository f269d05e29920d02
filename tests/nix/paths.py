"""Where the tests find the checkout and the model of nixpkgs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "nix" / "nixpkgs"
