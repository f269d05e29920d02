"""Why a device runs what it runs: for one library, each set of images and the driver's choice in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from vllm_variants.audit.summary import headers
from vllm_variants.errors import InputError
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import Source
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model.capability import Capability, Choice, Fit, Kind, Target, choose, fit


@dataclass(frozen=True)
class Why:
    """Containers that hold the same images, and how many they are.

    `choice` is what the driver takes from each (None: nothing runs); `reasons` has, for every image, its
    name (`sm_90a`, `compute_80`) and why it runs or does not.
    """

    containers: int
    choice: Choice | None
    reasons: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """The set as JSON; `runs` is null where nothing in it runs."""
        return {
            "containers": self.containers,
            "runs": label(self.choice.kind, self.choice.target) if self.choice else None,
            "fit": str(self.choice.fit if self.choice else Fit.NONE),
            "images": [{"image": image, "reason": reason} for image, reason in self.reasons],
        }


def label(kind: Kind, target: Target) -> str:
    """As people write it: `sm_90a` for a cubin, `compute_80` for PTX."""
    return target.sm if kind is Kind.CUBIN else target.sm.replace("sm_", "compute_")


def why(source: Source, device: Capability) -> list[Why]:
    """Explain one library for a device, the most frequent sets of images first.

    Raises `InputError` for a file that is no library, `Malformed` for one that is damaged.
    """
    elf = headers(source)
    if elf is None:
        raise InputError(f"{source.name} is not an ELF64 library")
    sets = Counter(
        tuple(_image_facts(source, container))
        for s in device_sections(elf)
        for container in containers_in(source, s)
    )
    return [_explained(images, count, device) for images, count in sets.most_common()]


ImageFacts = tuple[Kind | None, Target, bool]
"""An image's kind (None: unknown), its target, and whether it is a stub."""


def _image_facts(source: Source, container: Container) -> list[ImageFacts]:
    return sorted(
        ((image.kind, image.target, is_stub(source, image)) for image in container.images),
        key=lambda facts: (str(facts[0]), facts[1]),
    )


def _explained(images: tuple[ImageFacts, ...], count: int, device: Capability) -> Why:
    real = [(kind, target) for kind, target, stub in images if kind and not stub]
    choice = choose(real, device)
    reasons = []
    for kind, target, stub in images:
        if kind is None:
            reasons.append((f"unknown kind for {target}", "not understood, and kept"))
        elif stub:
            reasons.append((label(kind, target), "a stub: code for other devices was dropped here"))
        else:
            reasons.append((label(kind, target), reason(kind, target, device, choice)))
    return Why(count, choice, tuple(reasons))


def reason(kind: Kind, target: Target, device: Capability, choice: Choice | None) -> str:
    """Why an image runs on a device, or does not, in a few words."""
    capability = target.capability
    fits = fit(kind, target, device)
    if not fits:
        return _refused(kind, target, device)
    if choice and (kind, capability) != (choice.kind, choice.target.capability):
        return f"could run, but {label(choice.kind, choice.target)} is better"
    if fits is Fit.NATIVE:
        return f"runs: machine code for exactly {device}"
    if fits is Fit.JIT:
        return f"runs after the driver compiled it: PTX for {capability} suits {device}"
    return (
        f"runs: machine code for {capability} suits later minors of major {capability.major}, here {device}"
    )


def _refused(kind: Kind, target: Target, device: Capability) -> str:
    capability = target.capability
    if target.suffix == "a":
        return f"cannot run: `a` code is for exactly {capability}"
    if capability > device:
        return f"cannot run: {capability} is later than {device}"
    if capability.major == device.major:
        return "cannot run: an embedded device's machine code and others' are not interchangeable"
    if target.suffix == "f":
        return f"cannot run: `f` code is for the family of {capability}"
    return f"cannot run: machine code for major {capability.major}, the device is of major {device.major}"
