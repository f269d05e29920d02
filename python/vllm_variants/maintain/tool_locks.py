"""The locks of this tool's own environment: what the launcher installs, hash-locked from pyproject.toml.

    locks/tool.txt         what every command needs
    locks/tool-test.txt    and what `test` and `lint` need

They hold for every platform and Python that the launcher may meet; the packages' index is not named.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from vllm_variants.errors import Error
from vllm_variants.system import uv

EXTRAS: Mapping[str, tuple[str, ...]] = {"tool": ("pin",), "tool-test": ("pin", "test", "browser")}
"""A lock's name → the extras of pyproject.toml that it has besides the dependencies."""


def remake(root: Path, name: str, *, upgrade: bool = False) -> Path:
    """Resolve a lock of the checkout at `root` again, aside, and replace it; return its path.

    Versions in the old lock stay while pyproject.toml allows them, unless `upgrade`. Runs
    `uv pip compile`, which needs the package index. Raises `Error` when uv finds no solution.
    """
    target = root / "locks" / f"{name}.txt"
    with tempfile.TemporaryDirectory(prefix=".lock.", dir=target.parent) as aside:
        made = Path(aside, target.name)
        if target.is_file() and not upgrade:
            shutil.copyfile(target, made)
        completed = uv.run([*compile_command(name), root / "pyproject.toml", "--output-file", made])
        if completed.status:
            raise Error(f"uv found no set of packages for {target.name}; its reason is above")
        made.rename(target)
    return target


def compile_command(name: str) -> list[str]:
    """The arguments of `uv pip compile` for a lock of the tool: hashes, no addresses, every platform."""
    command = ["pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
    return [*command, *(word for extra in EXTRAS[name] for word in ("--extra", extra))]
