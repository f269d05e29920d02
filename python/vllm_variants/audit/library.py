"""What one library holds, and how each of its containers fits a device.

A container is judged as the driver would: by the best image in it. So a library's facts are, per
target, how many images and bytes; per fit, how many containers. The words, here and in the JSON:

foreign    images that can never run on the device: slimming drops them
spare      images that could run, but a better one is in the same container, or that slimming keeps because
           the rules leave a doubt (Tegra's); their bytes gain nothing on this device
stray      containers with code for nvcc's default target (`sm_52`) alone: somebody forgot to name the SMs
stub       an image without code that slimming put in the place of a dropped one
scattered  containers among other data of a section, as cuDNN has them; `elsewhere` in the JSON
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vllm_variants.audit.fitting import fitting, images_of, is_stray, kinds_of
from vllm_variants.audit.summary import HeldContainer, LibrarySummary, ScatteredGroup, summarise
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.native import schedule
from vllm_variants.fatbin.source import Source
from vllm_variants.model import toolkits
from vllm_variants.model.capability import Capability, Fit, Target


@dataclass(frozen=True)
class JitContainer:
    """A container whose only code for the device is PTX; `bytes` of text to compile at first use.

    `version` is that of the PTX language, which decides which drivers can.
    """

    offset: int
    target: Target
    bytes: int
    version: tuple[int, int]


@dataclass
class ImageGroup:
    """The images of one kind and target: how many, their bytes as stored and once decompressed."""

    count: int = 0
    bytes: int = 0
    original_bytes: int = 0

    def add(self, image: Image) -> None:
        """Count one more image."""
        self.count += 1
        self.bytes += image.size
        self.original_bytes += image.original_size


@dataclass
class ScatteredContainers:
    """The containers among other data of one section.

    `bytes` are all of theirs, `foreign` those of containers that have nothing for the device.
    """

    containers: int = 0
    bytes: int = 0
    foreign: int = 0


@dataclass
class LibraryAudit:
    """One library's device code. Without a device only its images are known.

    `path` counts from the root that was audited, `size` is the file's; `machine` is that of the ELF header,
    as in a system's name. `images` are grouped by kind (`cubin`, `ptx`, `kind 0x8`) and target; `fits`
    counts containers; `jit` lists those that wait for the driver's compiler. `foreign` and `spare` are
    bytes, `stubs` images, `stray` containers (see the module). `unknown` has a sentence for each image that
    is not understood, `problem` what is wrong with the file; empty: nothing. `summary` is what was read.
    """

    path: str
    size: int
    machine: str = ""
    containers: int = 0
    images: dict[tuple[str, Target], ImageGroup] = field(default_factory=dict)
    fits: Counter[Fit] = field(default_factory=Counter)
    jit: list[JitContainer] = field(default_factory=list)
    foreign: int = 0
    spare: int = 0
    stubs: int = 0
    stray: int = 0
    scattered: dict[str, ScatteredContainers] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    problem: str = ""
    summary: LibrarySummary | None = field(default=None, repr=False, compare=False)

    @property
    def device_bytes(self) -> int:
        """Bytes of all images, as stored."""
        return sum(group.bytes for group in self.images.values())

    @property
    def has_device_code(self) -> bool:
        """Whether it belongs into a report: it has containers, or could not be read to its end."""
        return bool(self.containers or self.scattered or self.problem)

    @property
    def jit_seconds(self) -> float:
        """About how long the driver compiles all of its PTX that waits, in seconds of one core."""
        return sum(schedule.cpu_seconds(container.bytes) for container in self.jit)

    @property
    def runs(self) -> int:
        """Containers with machine code for the device."""
        return self.fits[Fit.NATIVE] + self.fits[Fit.SAME_MAJOR] + self.fits[Fit.FAMILY]

    def as_dict(self) -> dict[str, Any]:
        """The library as JSON; sizes in bytes, offsets from the file's start."""
        return {
            "path": self.path,
            "size": self.size,
            "machine": self.machine,
            "containers": self.containers,
            "images": [
                {"kind": kind, "target": str(target), "images": group.count, "bytes": group.bytes,
                 "uncompressed": group.original_bytes}
                for (kind, target), group in sorted(self.images.items())
            ],
            "fits": {str(each): self.fits[each] for each in Fit if self.fits[each]},
            "jit": [
                {"offset": j.offset, "target": str(j.target), "bytes": j.bytes,
                 "ptx": ".".join(map(str, j.version))}
                for j in self.jit
            ],
            "foreign": self.foreign,
            "spare": self.spare,
            "stubs": self.stubs,
            "stray": self.stray,
            "elsewhere": {
                name: {"containers": s.containers, "bytes": s.bytes, "foreign": s.foreign}
                for name, s in self.scattered.items()
            },
            "unknown": self.unknown,
            "problem": self.problem,
        }  # fmt: skip


def audit_library(source: Source, path: str, device: Capability | None = None) -> LibraryAudit | None:
    """Audit one file; None when it is no ELF64 file. Malformed fat binaries become its `problem`."""
    summary = summarise(source, path)
    return judged(summary, device) if summary else None


def judged(summary: LibrarySummary, device: Capability | None = None) -> LibraryAudit:
    """A library that was read, judged for a device; without one its images are only counted."""
    audit = LibraryAudit(
        summary.path, summary.size, summary.machine, problem=summary.problem, summary=summary
    )
    for held in summary.containers:
        _count(held, audit)
        if device:
            _judge(held, device, audit)
    for group in summary.scattered:
        _count_scattered(group, device, audit)
    return audit


def _count(held: HeldContainer, audit: LibraryAudit) -> None:
    audit.containers += 1
    audit.stubs += len(held.stubs)
    images = held.images
    for image in images:
        group = audit.images.get(key := _group_of(image.code, image.architecture, image.flags))
        if group is None:
            group = audit.images[key] = ImageGroup()
        group.add(image)
        if not image.known:
            facts = f"kind {image.code:#x}, flags {image.flags:#x}, sm {image.architecture}"
            audit.unknown.append(f"image at {image.offset:#x}: {facts}")
    audit.stray += is_stray(kinds_of(images))


@lru_cache(maxsize=1 << 14)
def _group_of(code: int, architecture: int, flags: int) -> tuple[str, Target]:
    (image,) = images_of([(code, architecture, flags)])
    return str(image.kind or f"kind {code:#x}"), image.target


def _judge(held: HeldContainer, device: Capability, audit: LibraryAudit) -> None:
    container, found = held.container, held.fitting(device)
    audit.fits[found.fit] += 1
    audit.foreign += sum(container.images[n].size for n in found.foreign)
    audit.spare += sum(container.images[n].size for n in found.spare)
    audit.jit += [
        JitContainer(container.offset, image.target, image.original_size, image.version)
        for image in (container.images[n] for n in found.compiled)
    ]


def _count_scattered(group: ScatteredGroup, device: Capability | None, audit: LibraryAudit) -> None:
    counts = audit.scattered.setdefault(group.section, ScatteredContainers())
    counts.containers += group.containers
    counts.bytes += group.bytes
    understood = all(image.known for image in images_of(group.kinds))
    if device and understood and fitting(group.kinds, frozenset(), device).best is None:
        counts.foreign += group.code


def jit_bytes(libraries: Iterable[LibraryAudit]) -> int:
    """PTX that the driver would compile, in bytes of text."""
    return sum(container.bytes for library in libraries for container in library.jit)


def jit_driver(libraries: Iterable[LibraryAudit]) -> int | None:
    """The oldest driver branch (575) that can compile all of it; None: nothing to compile, or not known."""
    versions = [container.version for library in libraries for container in library.jit]
    return toolkits.driver(max(versions)) if versions else None
