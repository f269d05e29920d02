"""Which variants a machine's GPUs need, with the reason for each accept and reject."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_variants import documents
from vllm_variants.errors import UnsupportedError
from vllm_variants.machine.gpus import Gpu, Machine
from vllm_variants.model import toolkits
from vllm_variants.model.capability import Capability, Fit, Kind, Target, fit
from vllm_variants.model.variants import Matrix, Release, Variant


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
class GpuDetection:
    """One GPU, with every variant of the matrix as a candidate, accepted or not."""

    gpu: Gpu
    candidates: tuple[Candidate, ...]

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
        raise UnsupportedError(self.explain())

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
        GpuDetection(gpu, tuple(judge(gpu.capability, v, machine, release) for v in matrix.variants.values()))
        for gpu in machine.gpus
    )
    return Detection(machine, release, gpus)


def judge(capability: Capability, variant: Variant, machine: Machine, release: Release) -> Candidate:
    """Whether `variant` of `release` serves a GPU of `capability` in `machine`, and why."""
    fits = fit(Kind.CUBIN, Target(variant.capability), capability)
    obstacle = _obstacle(variant, machine, release)
    if not fits:
        return Candidate(variant, False, fits, f"code for {variant.capability} never runs on {capability}")
    if obstacle:
        return Candidate(variant, False, fits, obstacle)
    if fits is Fit.NATIVE:
        return Candidate(variant, True, fits, f"built for exactly {capability}")
    note = f"its {variant.capability} images run on {capability}, but those with an `a` suffix do not"
    return Candidate(variant, True, fits, note)


def _obstacle(variant: Variant, machine: Machine, release: Release) -> str | None:
    if variant.system != machine.system:
        return f"it is for {variant.system} and this host is {machine.system}"
    if machine.older_than(release.stack.driver):
        return (
            f"release {release.name} (CUDA {release.stack.cuda}) needs driver {release.stack.driver} "
            f"or later and this host has {machine.driver}"
        )
    return None
