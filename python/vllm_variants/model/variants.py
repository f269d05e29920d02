"""Releases and variants, and the matrix of both.

A *variant* is one SM on one platform; a *release* is a vLLM version with its stack. Names are
computed from both: `vllm-python312-cuda12_9-sm90`. No version and no SM is written in code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType

from vllm_variants.errors import UnsupportedError, UsageError
from vllm_variants.model.capability import Capability
from vllm_variants.model.platforms import host_system
from vllm_variants.versions import order


@dataclass(frozen=True)
class Stack:
    """The versions that a release is built on, as written: `3.12`, `12.9`, `560`, `2.9.1`.

    `cutlass` has those of the kernels that vLLM compiles, where they are known.
    """

    python: str
    cuda: str
    driver: str
    torch: str
    cutlass: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The stack as the manifest holds it."""
        return {
            "python": self.python,
            "cuda": self.cuda,
            "driver": self.driver,
            "torch": self.torch,
            "cutlass": list(self.cutlass),
        }


BUILDERS = ("wheels", "nix", "flox")
"""What can make a release; all but the first compile what a nixpkgs packages."""


@dataclass(frozen=True)
class Release:
    """A vLLM version with its stack, and what it can be made of.

    `nixpkgs` is the revision (40 hex digits) that packages it; None: only its wheels exist, and
    `builders` names no other. `glibc` is the oldest C library that its wheels run on, `2.31`;
    `own_variants` are the variants that exist for it although not every release has them.
    """

    name: str
    nixpkgs: str | None
    stack: Stack
    builders: tuple[str, ...] = BUILDERS
    glibc: str = "2.31"
    own_variants: tuple[str, ...] = ()

    def require_builder(self, builder: str) -> None:
        """Raise `UnsupportedError` when `builder`, one of `BUILDERS`, does not make this release."""
        if builder in self.builders:
            return
        others = " or ".join(f"--via {name}" for name in self.builders)
        reason = "no nixpkgs packages it" if self.nixpkgs is None else "variants.toml does not name it"
        raise UnsupportedError(
            f"release {self.name} cannot be built with {builder}: {reason}", hint=f"build it {others}"
        )


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
    """The variant that a text names, and as what the text was read: `the GPU RTX 4090 (Ada, sm89)`.

    `device` is the capability of the device that was meant: another than the variant's for a related GPU.
    """

    variant: Variant
    interpretation: str
    device: Capability


@dataclass(frozen=True)
class Matrix:
    """All releases and variants, in the file's order.

    `variants` are those that every release has, `more` those of the releases that list them.
    """

    default: Release
    releases: Mapping[str, Release]
    variants: Mapping[str, Variant]
    more: Mapping[str, Variant] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def every_variant(self) -> tuple[Variant, ...]:
        """The variants of all releases."""
        return (*self.variants.values(), *self.more.values())

    @property
    def newest_first(self) -> tuple[Release, ...]:
        """The releases, by version."""
        return tuple(sorted(self.releases.values(), key=lambda r: order(r.name), reverse=True))

    @property
    def packaged(self) -> Mapping[str, Release]:
        """The releases that a nixpkgs packages, by name: what the flake knows."""
        return {name: release for name, release in self.releases.items() if release.nixpkgs}

    def of(self, release: Release) -> Mapping[str, Variant]:
        """The variants that `release` is declared to have, by short name.

        Where it has a variant of its own for a capability, no other is said to serve that one besides.
        """
        own = {short: self.more[short] for short in release.own_variants}
        built = {(variant.system, variant.capability) for variant in own.values()}
        return {short: _without(v, built) for short, v in {**self.variants, **own}.items()}

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
        """The variants of every release that run on `system`."""
        return tuple(v for v in self.variants.values() if v.system == system)

    def knows(self, capability: Capability) -> bool:
        """Whether a variant is built for `capability`, or serves it without being built for it."""
        return any(
            capability in (variant.capability, *(related.capability for related in variant.related))
            for variant in self.every_variant
        )

    def built_for(self, device: Capability, system: str) -> tuple[Release, Variant] | None:
        """The newest release that has a variant built for `device` on `system`, and that variant."""
        for release in self.newest_first:
            for variant in self.of(release).values():
                if (variant.capability, variant.system) == (device, system):
                    return release, variant
        return None

    def parse(self, text: str, *, system: str | None = None, release: Release | None = None) -> Match:
        """The variant that `text` names, and as what it was read.

        Accepts a short name (`sm90`, `sm90-arm64`), a full name, a compute capability (`9.0`,
        `90`: on `system`, by default this host's) and a GPU's name (`H100`, `rtx 4090`,
        `NVIDIA H100 80GB HBM3`). Of the variants of `release`; without one, of those that every release
        has, then of all. Raises `UsageError` with the nearest names, and for what other releases have.
        """
        short = text.strip().lower()
        if release and short in self.more and short not in release.own_variants:
            self._refuse_other_release(text, system, release)
        pools = [self.of(release)] if release else [self.variants, self.more]
        for pool in pools:
            if match := _Pool(tuple(pool.values()), self._named(pool, release)).find(text.strip(), system):
                return match
        if release:
            self._refuse_other_release(text, system, release)
        raise UsageError(f"there is no variant, capability or GPU {text!r}", hint=self._nearest(text.strip()))

    def _named(self, pool: Mapping[str, Variant], release: Release | None) -> dict[str, Variant]:
        releases = [release] if release else self.releases.values()
        return {variant.name(r): variant for r in releases for variant in pool.values()}

    def _refuse_other_release(self, text: str, system: str | None, release: Release) -> None:
        """Raise `UsageError` when other releases than this have what `text` names."""
        others = [other for other in self.newest_first if other is not release]
        for other in sorted(others, key=lambda other: text.strip().lower() not in other.own_variants):
            pool = self.of(other)
            if match := _Pool(tuple(pool.values()), self._named(pool, other)).find(text.strip(), system):
                short = match.variant.short
                raise UsageError(
                    f"release {release.name} has no variant {text.strip()}; release {other.name} has it",
                    hint=f"ask for that release: vllm-variants build {short} --release {other.name}",
                )

    def _nearest(self, word: str) -> str:
        every = self.every_variant
        shorts = [variant.short for variant in every]
        full = [variant.name(r) for r in self.releases.values() for variant in self.of(r).values()]
        folded = {name.lower(): name for name in (*shorts, *full, *(g for v in every for g in v.all_gpus))}
        near = [folded[n] for n in get_close_matches(word.lower(), folded, n=3, cutoff=0.5)]
        return f"did you mean {' or '.join(near)}?" if near else "see `vllm-variants list` for all of them"


@dataclass(frozen=True)
class _Pool:
    """Variants to look a text up in, and their full names."""

    variants: tuple[Variant, ...]
    names: Mapping[str, Variant]

    def find(self, word: str, system: str | None) -> Match | None:
        """What `word` names; None: nothing here. Raises `UsageError` where it could be several GPUs."""
        shorts = {variant.short: variant for variant in self.variants}
        exact = shorts.get(word.lower()) or self.names.get(word.lower())
        if exact:
            return Match(exact, "a variant", exact.capability)
        return self._by_capability(word, system or host_system()) or self._by_gpu(word)

    def _by_capability(self, word: str, system: str) -> Match | None:
        try:
            capability = Capability.parse(word)
        except ValueError:
            return None
        rows = sorted(self.variants, key=lambda v: v.system != system)
        for variant in rows:
            if variant.capability == capability:
                return Match(variant, f"compute capability {capability} on {variant.system}", capability)
        for variant in rows:
            if any(related.capability == capability for related in variant.related):
                served = f"compute capability {capability}, which {variant.short}'s images serve"
                return Match(variant, f"{served} on {variant.system}", capability)
        return None

    def _by_gpu(self, word: str) -> Match | None:
        tokens = _tokens(word)
        known = [(gpu, v) for v in self.variants for gpu in v.all_gpus]
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
        related = (r.capability for r in variant.related if gpu in r.gpus)
        device = next(related, variant.capability)
        return Match(variant, f"the GPU {gpu} ({variant.architecture}, {variant.short})", device)


def _without(variant: Variant, built: set[tuple[str, Capability]]) -> Variant:
    """The variant, related to no capability that its system has a variant for in `built`."""
    kept = tuple(r for r in variant.related if (variant.system, r.capability) not in built)
    return variant if kept == variant.related else replace(variant, related=kept)


def _tokens(text: str) -> tuple[str, ...]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return tuple(word for word in words if word not in {"nvidia", "geforce", "tesla", "gpu"})


def _contains(whole: tuple[str, ...], part: tuple[str, ...]) -> bool:
    if not part:
        return False
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))
