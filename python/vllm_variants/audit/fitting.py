"""Which of a container's images runs on a device, decided once for all containers that hold the same.

A release has seven thousand containers with some dozens of sets of images. What depends on the sets alone is
remembered here; sizes and offsets, which differ, are read from the images themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from vllm_variants.fatbin.container import Container, Image
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.model.capability import Capability, Choice, Fit, Kind, Target, choose, fit

COMPILERS_DEFAULT = Target(Capability(5, 2))
"""What nvcc compiles for when nobody says: code for it alone is a build's oversight."""

ImageKind = tuple[int, int, int]
"""Code, architecture and flags of an image's header: all that decides on which device it runs."""


def kinds_of(images: Sequence[Image]) -> tuple[ImageKind, ...]:
    """What of images decides where they run."""
    return tuple((image.code, image.architecture, image.flags) for image in images)


def images_of(kinds: Sequence[ImageKind]) -> tuple[Image, ...]:
    """Images of these kinds, without bytes."""
    return tuple(
        Image(0, 0, 0, 0, 0, code, (0, 0), architecture, flags) for code, architecture, flags in kinds
    )


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a container's images serve a device, by their numbers in it; stubs are among none.

    `best` is what the driver takes (None: nothing runs), `chosen` the images of exactly that kind and target,
    `compiled` the PTX of its capability where it must be compiled. `foreign` and `spare` are as in `library`.
    """

    best: Choice | None
    chosen: tuple[int, ...]
    compiled: tuple[int, ...]
    foreign: tuple[int, ...]
    spare: tuple[int, ...]

    @property
    def fit(self) -> Fit:
        """Of the whole container."""
        return self.best.fit if self.best else Fit.NONE


@lru_cache(maxsize=1 << 16)
def fitting(kinds: tuple[ImageKind, ...], stubs: frozenset[int], device: Capability) -> Fitting:
    """How a container with images of these kinds serves a device; those numbered in `stubs` have no code."""
    images = images_of(kinds)
    real = [(n, kind, i.target) for n, i in enumerate(images) if n not in stubs and (kind := i.kind)]
    best = choose([(kind, target) for _, kind, target in real], device)
    kept = kept_images(Container(0, 0, 0, images), [device])
    roles: dict[str, list[int]] = {"chosen": [], "compiled": [], "foreign": [], "spare": []}
    for n, kind, target in real:
        if best and (kind, target) == (best.kind, best.target):
            roles["chosen"].append(n)
        if role := _role(kind, target, device, best, images[n] in kept):
            roles[role].append(n)
    return Fitting(best, **{name: tuple(numbers) for name, numbers in roles.items()})


def _role(kind: Kind, target: Target, device: Capability, best: Choice | None, kept: bool) -> str:
    if not fit(kind, target, device):
        return "spare" if kept else "foreign"
    if best and (kind, target.capability) != (best.kind, best.target.capability):
        return "spare"
    return "compiled" if best and best.fit is Fit.JIT else ""


@lru_cache(maxsize=1 << 14)
def is_stray(kinds: tuple[ImageKind, ...]) -> bool:
    """Whether images are all for what nvcc compiles for when nobody names a target; there are some."""
    return bool(kinds) and {image.target for image in images_of(kinds)} == {COMPILERS_DEFAULT}
