"""The devices of the matrix of SMs: those of the project's own matrix, and those that they serve besides."""

from __future__ import annotations

from vllm_variants.model.capability import Capability
from vllm_variants.model.variants import Matrix, Variant


def every_device(rows: Matrix) -> tuple[Capability, ...]:
    """Each capability that a variant is for or serves, in order."""
    own = {variant.capability for variant in rows.variants.values()}
    served = {related.capability for variant in rows.variants.values() for related in variant.related}
    return tuple(sorted(own | served))


def variant_for(rows: Matrix, device: Capability, machine: str = "x86_64") -> Variant | None:
    """The variant that is for a device on a machine (`aarch64`), or serves it; None: there is none."""
    candidates = [v for v in rows.variants.values() if v.system == f"{machine}-linux"]
    exact = [v for v in candidates if v.capability == device]
    serving = [v for v in candidates if any(related.capability == device for related in v.related)]
    return next(iter(exact + serving), None)
