"""Releases and variants, and the matrix of both.

A *variant* is one SM on one platform; a *release* is a vLLM version with its stack. Names are
computed from both: `vllm-python312-cuda12_9-sm90`. No version and no SM is written in code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

from vllm_variants.errors import UsageError
from vllm_variants.model.capability import Capability
from vllm_variants.model.platforms import host_system


@dataclass(frozen=True)
class Stack:
    """The versions that a release is built on, as written: `3.12`, `12.9`, `560`, `2.9.1`."""

    python: str
    cuda: str
    driver: str
    torch: str
    cutlass: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The stack as the manifest holds it."""
        return {
            "python": self.python,
            "cuda": self.cuda,
            "driver": self.driver,
            "torch": self.torch,
            "cutlass": list(self.cutlass),
        }


@dataclass(frozen=True)
class Release:
    """A vLLM version with its stack and the nixpkgs revision (40 hex digits) that packages it."""

    name: str
    nixpkgs: str
    stack: Stack


@dataclass(frozen=True)
class Related:
    """A capability that a variant's images serve without being built for it, and its GPUs."""

    capability: Capability
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One row of the matrix: `short` names it (`sm90-arm64`); `architecture` and `gpus` are NVIDIA's names.

    `system` is the platform as Nix spells it, `related` the capabilities that its images serve besides.
    """

    short: str
    capability: Capability
    architecture: str
    system: str
    gpus: tuple[str, ...]
    related: tuple[Related, ...] = ()

    def name(self, release: Release) -> str:
        """The full name: `vllm-python312-cuda12_9-sm90-arm64`."""
        stack = release.stack
        return f"vllm-python{stack.python.replace('.', '')}-cuda{stack.cuda.replace('.', '_')}-{self.short}"

    @property
    def all_gpus(self) -> tuple[str, ...]:
        """Every GPU this variant serves, the related ones included."""
        return self.gpus + tuple(gpu for related in self.related for gpu in related.gpus)


@dataclass(frozen=True)
class Match:
    """The variant that a text names, and as what the text was read: `the GPU RTX 4090 (Ada, sm89)`."""

    variant: Variant
    interpretation: str


@dataclass(frozen=True)
class Matrix:
    """All releases and variants, in the file's order."""

    default: Release
    releases: Mapping[str, Release]
    variants: Mapping[str, Variant]
    _names: Mapping[str, Variant] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = {v.name(r): v for r in self.releases.values() for v in self.variants.values()}
        object.__setattr__(self, "_names", MappingProxyType(names))

    def release(self, name: str | None = None) -> Release:
        """The release of that name, or the default one; `UsageError` for an unknown name."""
        if name is None:
            return self.default
        if name in self.releases:
            return self.releases[name]
        near = get_close_matches(name, self.releases, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(self.releases)
        raise UsageError(f"there is no release {name!r}", hint=f"{guess}choose one of: {known}")

    def for_system(self, system: str) -> tuple[Variant, ...]:
        """The variants that run on `system`."""
        return tuple(v for v in self.variants.values() if v.system == system)

    def knows(self, capability: Capability) -> bool:
        """Whether a variant is built for `capability`, or serves it without being built for it."""
        return any(
            capability in (variant.capability, *(related.capability for related in variant.related))
            for variant in self.variants.values()
        )

    def parse(self, text: str, *, system: str | None = None) -> Match:
        """The variant that `text` names, and as what it was read.

        Accepts a short name (`sm90`, `sm90-arm64`), a full name, a compute capability (`9.0`,
        `90`: on `system`, by default this host's) and a GPU's name (`H100`, `rtx 4090`,
        `NVIDIA H100 80GB HBM3`). Raises `UsageError` with the nearest names.
        """
        word = text.strip()
        exact = self.variants.get(word.lower()) or self._names.get(word.lower())
        if exact:
            return Match(exact, "a variant")
        match = self._by_capability(word, system or host_system()) or self._by_gpu(word)
        if match:
            return match
        raise UsageError(f"there is no variant, capability or GPU {text!r}", hint=self._nearest(word))

    def _by_capability(self, word: str, system: str) -> Match | None:
        try:
            capability = Capability.parse(word)
        except ValueError:
            return None
        rows = sorted(self.variants.values(), key=lambda v: v.system != system)
        for variant in rows:
            if variant.capability == capability:
                return Match(variant, f"compute capability {capability} on {variant.system}")
        for variant in rows:
            if any(related.capability == capability for related in variant.related):
                served = f"compute capability {capability}, which {variant.short}'s images serve"
                return Match(variant, f"{served} on {variant.system}")
        return None

    def _by_gpu(self, word: str) -> Match | None:
        tokens = _tokens(word)
        known = [(gpu, v) for v in self.variants.values() for gpu in v.all_gpus]
        # The longest known name inside the word wins: "NVIDIA RTX 3090 Ti" is no RTX 3090.
        named = [(gpu, v) for gpu, v in known if _contains(tokens, _tokens(gpu))]
        if named:
            longest = max(len(_tokens(gpu)) for gpu, _ in named)
            matches = [(gpu, v) for gpu, v in named if len(_tokens(gpu)) == longest]
        else:
            matches = [(gpu, v) for gpu, v in known if _contains(_tokens(gpu), tokens)]
        if not matches:
            return None
        if len({v.short for _, v in matches}) > 1:
            choices = ", ".join(f"{gpu} ({v.short})" for gpu, v in matches)
            raise UsageError(f"{word!r} could be several GPUs", hint=f"say which: {choices}")
        gpu, variant = matches[0]
        return Match(variant, f"the GPU {gpu} ({variant.architecture}, {variant.short})")

    def _nearest(self, word: str) -> str:
        names = [*self.variants, *self._names, *(g for v in self.variants.values() for g in v.all_gpus)]
        folded = {name.lower(): name for name in names}
        near = [folded[n] for n in get_close_matches(word.lower(), folded, n=3, cutoff=0.5)]
        return f"did you mean {' or '.join(near)}?" if near else "see `vllm-variants list` for all of them"


def _tokens(text: str) -> tuple[str, ...]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return tuple(word for word in words if word not in {"nvidia", "geforce", "tesla", "gpu"})


def _contains(whole: tuple[str, ...], part: tuple[str, ...]) -> bool:
    if not part:
        return False
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
