"""Which variants a release has: what is in its wheels decides.

A release of published wheels has a variant when vLLM's own libraries hold code that runs on its SM
(`expectations.py`); a variant that the release's nixpkgs compiles needs no such code.
"""

from __future__ import annotations

from collections.abc import Mapping

from vllm_variants.errors import MissingError, UnsupportedError
from vllm_variants.model import expectations
from vllm_variants.model.capability import Fit
from vllm_variants.model.expectations import ExpectedContainers
from vllm_variants.model.variants import Matrix, Release, Variant


def code(release: Release, variant: Variant) -> ExpectedContainers | None:
    """What vLLM's published libraries hold for the variant's SM, in containers; None: nobody derived it."""
    found = expectations.load(release.name, variant.system)
    return found.on(variant.capability) if found else None


def obstacle(release: Release, variant: Variant) -> str | None:
    """Why `release` has no such variant, as a clause; None: it has it."""
    known = expectations.load(release.name, variant.system)
    held = known.on(variant.capability) if known else None
    if known is None or (held and held.usable):
        return None
    if held is None:
        what = f"{variant.capability} ({variant.short})"
        return f"what release {release.name} holds for {what} was never derived"
    return (
        f"release {release.name} (CUDA {release.stack.cuda}) has no code that runs on"
        f" {variant.capability} ({variant.architecture})"
    )


def of(matrix: Matrix, release: Release) -> Mapping[str, Variant]:
    """The variants of `release` that it has code for, by short name."""
    return {short: row for short, row in matrix.of(release).items() if not obstacle(release, row)}


def releases_with(matrix: Matrix, variant: Variant) -> tuple[Release, ...]:
    """The releases that have the variant, newest first."""
    return tuple(release for release in matrix.newest_first if variant.short in of(matrix, release))


def require(matrix: Matrix, release: Release, variant: Variant) -> None:
    """Raise `UnsupportedError` when `release` has nothing for `variant`; it names the newest that does.

    `MissingError` where the release's expectations say nothing of that SM, so that nobody knows.
    """
    reason = obstacle(release, variant)
    if not reason:
        return
    if code(release, variant) is None:
        derive = f"vllm-variants audit --derive WHEEL… > expectations/{release.name}.toml"
        raise MissingError(reason, hint=derive)
    others = releases_with(matrix, variant)
    hint = f"vllm-variants build {variant.short} --release {others[0].name}" if others else None
    more = f"; release {others[0].name} does" if others else ", and no other release does"
    raise UnsupportedError(reason + more, hint=hint)


def fits(held: ExpectedContainers) -> str:
    """How the code of a release fits an SM, in words: `73 native, 20 of PTX`; of containers that run."""
    words = {Fit.JIT: "as PTX only"}
    counts = ((fit, held.by_fit.get(fit, 0)) for fit in Fit)
    return ", ".join(f"{count} {words.get(fit, fit.value)}" for fit, count in counts if count)
