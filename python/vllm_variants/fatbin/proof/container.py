"""Prove one rewritten container against its source's: what it may hold, and that every device finds its code.

What must hold:
- it holds images of that container and no other's, in their order, each as it was, stored in another
  way, or compiled;
- an image of an unknown kind is still there, and so is the code that the driver of each device would have
  chosen, or a cubin for that device, compiled from the PTX that would have been;
- a stub stands only where no device would have chosen anything, for an image that the container had, and
  holds no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from vllm_variants.errors import InputError
from vllm_variants.fatbin.container import Container, Image
from vllm_variants.fatbin.native import cubin as cubins
from vllm_variants.fatbin.native import ptx as ptxs
from vllm_variants.fatbin.native.proof import wrong as images_wrong
from vllm_variants.fatbin.new_image import NewImage, header_without_storage
from vllm_variants.fatbin.rewrite import Rewrite
from vllm_variants.fatbin.source import Source
from vllm_variants.fatbin.stub import LARGEST, Stub
from vllm_variants.model.capability import Capability, Choice, Kind, Target, choose


def wrong(
    source: Source,
    was: Container,
    change: Rewrite,
    new: Source,
    now: Container,
    devices: Sequence[Capability],
) -> str | None:
    """What is wrong with `now`, which `was` became by `change`, as a clause; None: it is as it must be.

    Without devices every image must still be there. Raises `Malformed`.
    """
    expected = (change.stub.image,) if change.stub else change.images
    if len(now.images) != len(expected):
        return f"it has {len(now.images)} images, not {len(expected)}"
    if now.size != change.size:
        return f"it has {now.size} bytes, not {change.size}"
    if reason := _foreign(was, change) or _unserved(was, change, devices):
        return reason
    if change.stub:
        return _wrong_stub(source, was, change.stub, new, now.images[0])
    return images_wrong(source, change.images, new, now)


def _stands_for(image: Image | NewImage) -> Image:
    return image.stands_for if isinstance(image, NewImage) else image


def _foreign(was: Container, change: Rewrite) -> str | None:
    """Several cubins may come from one PTX, which may stay behind them; nothing else is there twice."""
    own = {image.offset: image for image in was.images}
    if any(own.get(image.offset) != image for image in map(_stands_for, change.images)):
        return "it has an image of another fat binary"
    for before, after in pairwise(change.images):
        compiled = isinstance(before, NewImage) and before.compiled
        if _stands_for(before).offset + (not compiled) > _stands_for(after).offset:
            return "its images are in another order, or one is there twice"
    return None


def _unserved(was: Container, change: Rewrite, devices: Sequence[Capability]) -> str | None:
    kept = {_stands_for(i).offset for i in change.images if not (isinstance(i, NewImage) and i.compiled)}
    gone = [image for image in was.images if image.offset not in kept]
    if not gone:
        return None
    if any(not image.known for image in gone):
        return "an image of an unknown kind went"
    if not devices:
        return f"its {gone[0].target} image went"
    codes = tuple((image.kind, image.target) for image in was.images if image.known and image.kind)
    for device in devices:
        best = _choice(codes, device)
        for image in gone:
            needed = best and (image.kind, image.target) == (best.kind, best.target)
            if needed and not _is_compiled(change, image, device):
                return f"its {image.target} image went, which {device} needs"
    return None


def _is_compiled(change: Rewrite, ptx: Image, device: Capability) -> bool:
    return any(
        isinstance(image, NewImage)
        and image.compiled
        and image.stands_for == ptx
        and image.image.kind is Kind.CUBIN
        and image.image.target.capability == device
        for image in change.images
    )


@lru_cache(maxsize=4096)
def _choice(images: tuple[tuple[Kind, Target], ...], device: Capability) -> Choice | None:
    """Remembered: thousands of containers hold the same few targets."""
    return choose(images, device)


def _wrong_stub(source: Source, was: Container, stub: Stub, new: Source, now: Image) -> str | None:
    if new.at(now.offset, now.size) != stub.data or now.payload_size > LARGEST:
        return "it has a broken stub"
    header = header_without_storage(new.at(now.offset, now.header_size))
    if now.compression != "none" or not any(
        image.header_size == now.header_size
        and header_without_storage(source.at(image.offset, image.header_size)) == header
        for image in was.images
    ):
        return "its stub stands for no image that it had"
    payload = new.at(now.offset + now.header_size, now.payload_size)
    if now.kind is None or not _holds_nothing(payload, now.kind, now.target):
        return "its stub is not one for its target, or holds code"
    return None


@lru_cache(maxsize=256)
def _holds_nothing(payload: bytes, kind: Kind, target: Target) -> bool:
    """Whether a payload is a cubin or PTX for that target, without a kernel."""
    try:
        if kind is Kind.PTX:
            ptx = ptxs.parse(ptxs.text_of(payload))
            return ptx.target == target and not ptx.entries
        cubin = cubins.parse(payload)
        return cubin.target == cubins.marked(target) and not cubin.kernels
    except InputError:
        return False
