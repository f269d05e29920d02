"""Which variants a machine's GPUs need, with the reason for each accept and reject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from vllm_variants import documents
from vllm_variants.errors import UnsupportedError
from vllm_variants.machine import c_library
from vllm_variants.machine.gpus import Gpu, Machine
from vllm_variants.model import offers, toolkits
from vllm_variants.model.capability import Capability, Fit, Kind, Target, fit
from vllm_variants.model.platforms import host_system
from vllm_variants.model.variants import BUILDERS, Matrix, Release, Variant


@dataclass(frozen=True)
class Candidate:
    """A variant that was considered for a GPU: accepted or not, and why; `fit` is that of a plain cubin."""

    variant: Variant
    accepted: bool
    fit: Fit
    reason: str

    def as_dict(self) -> dict[str, object]:
        """The candidate as JSON: one of a GPU's `verdicts`."""
        return {
            "variant": self.variant.short,
            "accepted": self.accepted,
            "fit": self.fit.value,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class ReleaseFit:
    """Whether a release serves a GPU: with which variant, None for none; and why, as a clause."""

    release: Release
    variant: Variant | None
    reason: str

    def as_dict(self) -> dict[str, object]:
        """The release as JSON: one of a GPU's `releases`."""
        name = self.variant.name(self.release) if self.variant else None
        return {"release": self.release.name, "variant": name, "reason": self.reason}


@dataclass(frozen=True)
class GpuDetection:
    """One GPU, with every variant of a release as a candidate, accepted or not.

    `releases` has all releases, newest first, and whether they serve this GPU.
    """

    gpu: Gpu
    candidates: tuple[Candidate, ...]
    releases: tuple[ReleaseFit, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        """The accepted variant of the highest capability."""
        accepted = [v for v in self.candidates if v.accepted]
        return max(accepted, key=lambda v: v.variant.capability, default=None)

    @property
    def nearest(self) -> Candidate | None:
        """The candidate to name where none is accepted: one whose images run, then the nearest capability."""

        def distance(candidate: Candidate) -> tuple[bool, int, int]:
            built, device = candidate.variant.capability, self.gpu.capability
            return not candidate.fit, abs(built.major - device.major), abs(built.minor - device.minor)

        return min(self.candidates, key=distance, default=None)


@dataclass(frozen=True)
class Detection:
    """A machine and what each of its GPUs needs."""

    machine: Machine
    release: Release
    gpus: tuple[GpuDetection, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants to build, each once, in the order of the GPUs."""
        chosen = (gpu.chosen for gpu in self.gpus)
        return tuple(dict.fromkeys(candidate.variant for candidate in chosen if candidate))

    def as_dict(self) -> dict[str, object]:
        """Machine, GPUs, verdicts and what to build, as JSON."""
        return {
            "schema": documents.DETECT,
            "machine": self.machine.as_dict(),
            "release": self.release.name,
            "variants": [variant.name(self.release) for variant in self.variants],
            "reservation": self.reservation(),
            "gpus": [
                {
                    **detected.gpu.as_dict(),
                    "variant": detected.chosen.variant.name(self.release) if detected.chosen else None,
                    "verdicts": [candidate.as_dict() for candidate in detected.candidates],
                    "releases": [release.as_dict() for release in detected.releases],
                }
                for detected in self.gpus
            ],
        }

    def require(self) -> tuple[Variant, ...]:
        """The variants to build; `UnsupportedError` says why there are none."""
        if self.variants:
            return self.variants
        if self.machine.problem:
            raise UnsupportedError(
                self.machine.problem, hint="name a variant instead, e.g. `vllm-variants build sm90`"
            )
        raise UnsupportedError(self.explain(), hint=self._another_release())

    def _another_release(self) -> str | None:
        """The newest release that serves every GPU, as the command that builds it; None: there is none."""
        for served in zip(*(gpu.releases for gpu in self.gpus), strict=True):
            if all(release.variant for release in served):
                name = served[0].release.name
                return f"release {name} serves it: vllm-variants build auto --release {name}"
        return None

    def explain(self) -> str:
        """Why the GPUs that get no variant get none."""
        return "; ".join(self.why_none(gpu) for gpu in self.gpus if not gpu.chosen)

    def reservation(self) -> str | None:
        """What the driver cannot do for the release although it runs it, as a sentence; None: nothing.

        A driver compiles only the PTX of toolkits that are not newer than itself (`model/toolkits.py`).
        """
        oldest = toolkits.driver_of(self.release.stack.cuda)
        if not self.variants or not oldest or not self.machine.older_than(str(oldest)):
            return None
        return (
            f"driver {self.machine.driver} runs this release, but PTX of CUDA {self.release.stack.cuda} is"
            f" compiled by {oldest} and later only: kernels that have nothing else for a GPU will fail"
            " (`vllm-variants audit RESULT` counts them)"
        )

    def why_none(self, detected: GpuDetection) -> str:
        """One clause on why no variant serves this GPU, with the nearest one."""
        gpu, near = detected.gpu, detected.nearest
        head = f"no variant serves GPU {gpu.index}, {gpu.name} ({gpu.capability})"
        return f"{head}: the nearest is {near.variant.short}, but {near.reason}" if near else head


def detect(machine: Machine, matrix: Matrix, release: Release) -> Detection:
    """Judge every variant for every GPU of `machine`."""
    gpus = tuple(
        replace(
            _detected(gpu, machine, matrix, release),
            releases=tuple(_release_fit(gpu, machine, matrix, other) for other in matrix.newest_first),
        )
        for gpu in machine.gpus
    )
    return Detection(machine, release, gpus)


def newest(
    machine: Machine,
    matrix: Matrix,
    variants: Mapping[str, Sequence[Variant]],
    refused: Mapping[str, str] = MappingProxyType({}),
) -> Release:
    """The newest release that fits: `variants` has what was asked for, of each release that has it at all.

    `refused` says of others, by name, why they have it not.

    A release fits when it has code for all of them, and this machine's driver and C library run those of
    its own system. Raises `UnsupportedError` with the reason of each release.
    """
    reasons = []
    for release in matrix.newest_first:
        rows = variants.get(release.name)
        obstacles = [_obstacle_to_build(row, machine, release) for row in rows or ()]
        if rows and not any(obstacles):
            return release
        unknown = refused.get(release.name, f"release {release.name} has no such variant")
        reasons.append(next(filter(None, obstacles), unknown))
    raise UnsupportedError("no release fits: " + "; ".join(reasons))


def _obstacle_to_build(variant: Variant, machine: Machine, release: Release) -> str | None:
    if without_code := offers.obstacle(release, variant):
        return without_code
    if variant.system != machine.system:
        return None  # built here, run elsewhere
    older = machine.driver is not None and machine.older_than(release.stack.driver)
    return _needs_driver(machine, release) if older else c_library.problem(release)


def _detected(gpu: Gpu, machine: Machine, matrix: Matrix, release: Release) -> GpuDetection:
    rows = matrix.of(release).values()
    return GpuDetection(gpu, tuple(judge(gpu.capability, row, machine, release) for row in rows))


def _release_fit(gpu: Gpu, machine: Machine, matrix: Matrix, release: Release) -> ReleaseFit:
    detected = _detected(gpu, machine, matrix, release)
    if detected.chosen and (too_old := _obstacle_to_wheels(machine, release)):
        return ReleaseFit(release, None, too_old)
    if chosen := detected.chosen:
        return ReleaseFit(release, chosen.variant, chosen.reason)
    near = detected.nearest
    reason = f"the nearest is {near.variant.short}, but {near.reason}" if near else "it has no variant"
    return ReleaseFit(release, None, reason)


def _obstacle_to_wheels(machine: Machine, release: Release) -> str | None:
    """Why a release that is made of wheels alone does not run here; what Nix makes brings a C library."""
    alone = release.builders == BUILDERS[:1] and machine.system == host_system()
    return c_library.problem(release) if alone else None


def judge(capability: Capability, variant: Variant, machine: Machine, release: Release) -> Candidate:
    """Whether `variant` of `release` serves a GPU of `capability` in `machine`, and why."""
    fits = fit(Kind.CUBIN, Target(variant.capability), capability)
    obstacle = _obstacle(variant, machine, release)
    if not fits:
        return Candidate(variant, False, fits, f"code for {variant.capability} never runs on {capability}")
    if obstacle:
        return Candidate(variant, False, fits, obstacle)
    if fits is Fit.NATIVE:
        return Candidate(
            variant, True, fits, f"built for exactly {capability}{_without_native(variant, release)}"
        )
    note = f"its {variant.capability} images run on {capability}, but those with an `a` suffix do not"
    return Candidate(variant, True, fits, note)


def _obstacle(variant: Variant, machine: Machine, release: Release) -> str | None:
    if variant.system != machine.system:
        return f"it is for {variant.system} and this host is {machine.system}"
    if machine.older_than(release.stack.driver):
        return _needs_driver(machine, release)
    return offers.obstacle(release, variant)


def _needs_driver(machine: Machine, release: Release) -> str:
    return (
        f"release {release.name} (CUDA {release.stack.cuda}) needs driver {release.stack.driver} "
        f"or later and this host has {machine.driver}"
    )


def _without_native(variant: Variant, release: Release) -> str:
    """How a release's own variant serves an SM that it has no machine code of exactly; empty: it has some."""
    held = offers.code(release, variant)
    if not held or held.by_fit.get(Fit.NATIVE) or variant.short not in release.own_variants:
        return ""
    return f", of {offers.fits(held)} containers of vLLM's, none native"
