"""The devices of the matrix of SMs: those of the project's own matrix, and those that they serve besides."""

from __future__ import annotations

from vllm_variants.model import offers
from vllm_variants.model.capability import Capability
from vllm_variants.model.variants import Matrix, Release, Variant


def every_device(rows: Matrix) -> tuple[Capability, ...]:
    """Each capability that a variant is for or serves, in order."""
    own = {variant.capability for variant in rows.every_variant}
    served = {related.capability for variant in rows.every_variant for related in variant.related}
    return tuple(sorted(own | served))


def variant_for(
    rows: Matrix, device: Capability, machine: str = "x86_64", release: Release | None = None
) -> Variant | None:
    """The variant of a release that is for a device on a machine (`aarch64`), or serves it; None: none is.

    Of the default release where none is given.
    """
    offered = offers.of(rows, release or rows.default).values()
    candidates = [v for v in offered if v.system == f"{machine}-linux"]
    exact = [v for v in candidates if v.capability == device]
    serving = [v for v in candidates if any(related.capability == device for related in v.related)]
    return next(iter(exact + serving), None)
