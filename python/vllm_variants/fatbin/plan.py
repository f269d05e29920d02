"""Which images of a container stay for given devices: decided from headers alone, and pure.

For every device the images its driver could choose stay: the best cubin with those of the same
capability, else the highest PTX. What is unknown stays. Where the rule is in doubt, both stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from vllm_variants.fatbin.container import Container, Image
from vllm_variants.model.capability import Capability, Fit, Kind, Target, choose, fit


def kept_images(container: Container, devices: Sequence[Capability], keep_ptx: bool = False) -> list[Image]:
    """The images that stay, in their order; none when no device can run any of them."""
    images = [((image.kind, image.target) if image.known else None, image) for image in container.images]
    wanted = _wanted(tuple(code for code, _ in images if code), tuple(devices), keep_ptx)
    unknown = {(image.kind, image.target) for code, image in images if not code}
    return [image for code, image in images if not code or code in wanted or code in unknown]


_Code = tuple[Kind | None, Target]
"""What an image is, as far as a device's choice asks."""


@lru_cache(maxsize=4096)
def _wanted(images: tuple[_Code, ...], devices: tuple[Capability, ...], keep_ptx: bool) -> frozenset[_Code]:
    """What stays of known images. Remembered: thousands of containers hold the same few targets."""
    known = [(kind, target) for kind, target in images if kind]
    wanted = {code for device in devices for code in _choosable(known, device)}
    if keep_ptx and (portable := _portable_ptx(known, devices)):
        wanted.add((Kind.PTX, portable))
    return frozenset(wanted)


def _choosable(images: Sequence[tuple[Kind, Target]], device: Capability) -> set[_Code]:
    best = choose(images, device)
    if best is None:
        return set(_doubtful(images, device, None))
    same = {
        (kind, target)
        for kind, target in images
        if kind is best.kind and target.capability == best.target.capability and fit(kind, target, device)
    }
    return same | _doubtful(images, device, best.target if best.kind is Kind.CUBIN else None)


def _doubtful(images: Sequence[tuple[Kind, Target]], device: Capability, best: Target | None) -> set[_Code]:
    """Cubins that only the Tegra rule excludes, as good by number as `best`: no driver's word is at hand."""
    return {
        (kind, target)
        for kind, target in images
        if kind is Kind.CUBIN
        and (target.capability.tegra or device.tegra)
        and target.capability.major == device.major
        and target.capability <= device
        and (target.suffix != "a" or target.capability == device)
        and (best is None or target.capability >= best.capability)
    }


def _portable_ptx(images: Iterable[tuple[Kind, Target]], devices: Sequence[Capability]) -> Target | None:
    """The PTX that the most later devices can compile: the highest the devices can, else the lowest."""
    targets = {target for kind, target in images if kind is Kind.PTX and not target.suffix}
    usable = [t for t in targets if any(fit(Kind.PTX, t, device) is Fit.JIT for device in devices)]
    return max(usable, default=None) or min(targets, default=None)
