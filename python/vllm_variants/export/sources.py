"""What is exported: whole results of this package's own builder, each once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_variants.errors import UnsupportedError, UsageError
from vllm_variants.model import results
from vllm_variants.model.platforms import host_system
from vllm_variants.model.results import DamagedError, Result


def read(paths: Sequence[Path]) -> tuple[Result, ...]:
    """The results at `paths`, links or directories, in their order.

    Raises `MissingError` where there is none, `DamagedError` for one that has lost something,
    `UnsupportedError` for one that has its parts elsewhere (Nix), `UsageError` where none or one twice is
    given.
    """
    found = tuple(map(_whole, paths))
    if not found:
        raise UsageError(
            "there is nothing to export", hint="name a variant: vllm-variants export sm90 --to …"
        )
    for index, result in enumerate(found):
        for other in found[:index]:
            if (
                other.manifest.variant == result.manifest.variant
                and other.manifest.release == result.manifest.release
            ):
                raise UsageError(f"{result.manifest.short} is given twice", hint="name each variant once")
    return found


def require_this_platform(result: Result) -> None:
    """Raise `UnsupportedError` for a result of another processor: its Python cannot be taken from here."""
    if result.manifest.system != host_system():
        raise UnsupportedError(
            f"{result.path} is for {result.manifest.system}, and this machine's Python is not",
            hint=f"export it on a machine of {result.manifest.system}; --to wheels:DIR needs no Python",
        )


def site_packages(result: Result) -> Path:
    """The folder of a result that holds its Python packages."""
    minor = ".".join(str(result.manifest.facts["python"]).split(".")[:2])
    return result.path / "lib" / f"python{minor}" / "site-packages"


def _whole(path: Path) -> Result:
    result = results.read(path)
    if result.manifest.builder != "wheels":
        raise UnsupportedError(
            f"{path} was built by {result.manifest.builder}: its parts lie in /nix/store",
            hint="`nix copy` and `dockerTools.streamLayeredImage` take it elsewhere",
        )
    if not site_packages(result).is_dir():
        raise DamagedError(f"{result.path} has lost its packages", hint="build the variant again")
    return result
