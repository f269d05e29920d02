"""Which PTX of a container a device's driver would compile: decided from headers alone, and pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_variants.fatbin.container import Container, Image
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.model.capability import Capability, Kind, Target, choose


@dataclass(frozen=True)
class Need:
    """A PTX image that `device` would compile at first use, and the target to compile it for before."""

    container: Container
    image: Image
    device: Capability

    @property
    def target(self) -> Target:
        """The device's own SM; `a` code stays `a` code. Family code needs no suffix: ptxas takes it so."""
        return Target(self.device, "a" if self.image.target.suffix == "a" else "")


@dataclass(frozen=True)
class Left:
    """A container that still waits for the driver's compiler on `device`, and why, as a clause."""

    offset: int
    device: Capability
    ptx: Target
    reason: str


def needs(container: Container, devices: Sequence[Capability]) -> tuple[list[Need], list[Left]]:
    """What must be compiled so that none of `devices` waits, and what cannot be."""
    found: list[Need] = []
    left: list[Left] = []
    images = [(kind, image) for image in container.images if image.known and (kind := image.kind)]
    for device in dict.fromkeys(devices):
        best = choose([(kind, image.target) for kind, image in images], device)
        if best is None or best.kind is not Kind.PTX:
            continue
        chosen = [image for kind, image in images if kind is Kind.PTX and image.target == best.target]
        if len(chosen) > 1:
            reason = f"it holds {len(chosen)} PTX images for {best.target}: which one runs is not known"
            left.append(Left(container.offset, device, best.target, reason))
        else:
            found.append(Need(container, chosen[0], device))
    return found, left


def images_beside(
    container: Container,
    devices: Sequence[Capability],
    compiled: Sequence[Capability],
    keep_ptx: bool,
) -> list[Image]:
    """The images of the source that stay when `compiled` devices have a cubin of their own.

    PTX stays for a device that still needs it, and with `keep_ptx`.
    """
    kept = kept_images(container, devices, keep_ptx)
    if keep_ptx:
        return kept
    others = kept_images(container, [device for device in devices if device not in compiled])
    return [image for image in kept if image.kind is not Kind.PTX or image in others]
