"""Flox's package expressions: one file a variant under `.flox/pkgs`, each the same one line.

Flox makes a package of every file there, under the file's name, and calls it with its own nixpkgs;
what the line imports is in `nix/flox.nix`.
"""

from __future__ import annotations

from pathlib import Path

from vllm_variants.builders.source.flox import EXPRESSIONS
from vllm_variants.model.variants import Matrix


def expressions(matrix: Matrix) -> dict[Path, str]:
    """Path in the repository → text, for every variant of the default release."""
    names = [variant.name(matrix.default) for variant in matrix.variants.values()]
    return {EXPRESSIONS / f"{name}.nix": expression(name) for name in names}


def expression(name: str) -> str:
    """The expression of one variant, by its full name."""
    return (
        "{ stdenv, ... }: import ../../nix/flox.nix "
        f'{{ name = "{name}"; system = stdenv.hostPlatform.system; }}\n'
    )


def strays(root: Path, matrix: Matrix) -> list[Path]:
    """What is in the folder and is no variant's: Flox would make packages of it."""
    return sorted(set((root / EXPRESSIONS).iterdir()) - {root / path for path in expressions(matrix)})
