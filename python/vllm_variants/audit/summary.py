"""What one library holds, before anybody asks for which device: read once, judged for any.

A summary has every container of the sections that hold nothing else, with its images' headers, and the
sums of those among other data, by what their images are. It is what the audit's cache keeps (`cache.py`),
so `from_json` gives exactly what `as_json` was made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_variants.audit.find import begins_as_elf
from vllm_variants.audit.fitting import Fitting, ImageKind, fitting, kinds_of
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container, Image, containers, scattered_containers
from vllm_variants.fatbin.rewrite import device_sections
from vllm_variants.fatbin.source import Malformed, Source
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model.capability import Capability

SCATTERED_SECTIONS = (".cask_resource", ".ldata", ".lrodata")
"""Sections that may hold containers among other data; nothing is dropped from them unless asked."""

FeatureReader = Callable[[Source, Container, frozenset[int]], tuple[str, ...]]
"""Gives the features that a container's kernels belong to; the numbers are those of its stubs."""


@dataclass(frozen=True, slots=True)
class HeldContainer:
    """A container, which of its images are stubs, and the features that its kernels belong to."""

    container: Container
    stubs: frozenset[int] = frozenset()
    features: tuple[str, ...] = ()

    @property
    def images(self) -> Sequence[Image]:
        """Its images but for stubs."""
        if not self.stubs:
            return self.container.images
        return [image for n, image in enumerate(self.container.images) if n not in self.stubs]

    def fitting(self, device: Capability) -> Fitting:
        """How its images serve a device."""
        return fitting(kinds_of(self.container.images), self.stubs, device)


@dataclass
class ScatteredGroup:
    """Containers among other data with the same kinds of images; `bytes` of theirs, `code` of their images.

    `stubs` counts images without code; `kinds` is what the others are.
    """

    section: str
    kinds: tuple[ImageKind, ...]
    containers: int = 0
    bytes: int = 0
    code: int = 0
    stubs: int = 0


@dataclass
class LibrarySummary:
    """One library's device code for no device in particular.

    `path` counts from the root that was audited, `size` is the file's in bytes, `machine` as in a system's
    name. `problem` says why the file could not be read to its end; empty: it was.
    """

    path: str
    size: int
    machine: str = ""
    containers: list[HeldContainer] = field(default_factory=list)
    scattered: list[ScatteredGroup] = field(default_factory=list)
    problem: str = ""

    @property
    def has_device_code(self) -> bool:
        """Whether it belongs into a report: it has containers, or could not be read to its end."""
        return bool(self.containers or self.scattered or self.problem)

    def as_json(self) -> list[Any]:
        """The summary without its path, as nested lists of numbers and texts."""
        return [
            self.size, self.machine, self.problem,
            [
                [c.container.offset, c.container.header_size, c.container.size,
                 [_packed(image) for image in c.container.images], sorted(c.stubs), list(c.features)]
                for c in self.containers
            ],
            [[g.section, g.kinds, g.containers, g.bytes, g.code, g.stubs] for g in self.scattered],
        ]  # fmt: skip

    @classmethod
    def from_json(cls, path: str, packed: Sequence[Any]) -> LibrarySummary:
        """What `as_json` was made of; `ValueError`, `TypeError` or `IndexError` on anything else."""
        size, machine, problem, held, scattered = packed
        return cls(
            path, size, machine,
            [
                HeldContainer(
                    Container(offset, header, whole, _unpacked(offset + header, images)),
                    frozenset(stubs),
                    tuple(features),
                )
                for offset, header, whole, images, stubs, features in held
            ],
            [
                ScatteredGroup(section, tuple(tuple(kind) for kind in kinds), *numbers)
                for section, kinds, *numbers in scattered
            ],
            problem,
        )  # fmt: skip


def _packed(image: Image) -> list[int]:
    return [
        image.header_size, image.payload_size, image.compressed_size, image.uncompressed_size,
        image.code, *image.version, image.architecture, image.flags,
    ]  # fmt: skip


def _unpacked(at: int, images: Sequence[Sequence[int]]) -> tuple[Image, ...]:
    """Images stand behind each other: their offsets follow from their sizes."""
    unpacked = []
    for header, payload, compressed, uncompressed, code, major, minor, architecture, flags in images:
        version = (major, minor)
        unpacked.append(
            Image(at, header, payload, compressed, uncompressed, code, version, architecture, flags)
        )
        at += header + payload
    return tuple(unpacked)


def headers(source: Source) -> elfs.Elf | None:
    """The headers of an ELF64 library; None for a file that is none.

    Raises `Malformed` where the file is cut off or damaged, and where it has fat binaries but no section
    table, which is the only thing that says where all of them are.
    """
    if not elfs.is_elf64(source):
        if source.size < elfs.HEADER.size and begins_as_elf(source.at(0, min(source.size, 4))):
            raise Malformed(source.name, source.size, "the file ends within its ELF header")
        return None
    elf = elfs.parse(source)
    if not elf.sections and (found := next(scattered_containers(source, 0, source.size), None)):
        raise Malformed(source.name, found.offset, "a fat binary in a file without a section table")
    return elf


def summarise(source: Source, path: str, features: FeatureReader | None = None) -> LibrarySummary | None:
    """Read one file; None when it is no ELF64 file. Malformed fat binaries become its `problem`.

    `features` names what a container's kernels belong to; without it nothing is asked of kernels.
    """
    summary = LibrarySummary(path, source.size)
    try:
        elf = headers(source)
        if elf is None:
            return None
        summary.machine = elf.architecture
        for section in device_sections(elf):
            for container in containers(source, section.offset, section.end):
                summary.containers.append(_held(source, container, features))
        for section in elf.sections:
            if section.name in SCATTERED_SECTIONS and section.file_size:
                summary.scattered += _scattered(source, section)
    except Malformed as error:
        summary.problem = error.message
    except OSError as error:
        summary.problem = f"cannot be read: {error.strerror or error}"
    return summary


def _held(source: Source, container: Container, features: FeatureReader | None) -> HeldContainer:
    stubs = frozenset(n for n, image in enumerate(container.images) if is_stub(source, image))
    return HeldContainer(container, stubs, features(source, container, stubs) if features else ())


def _scattered(source: Source, section: elfs.Section) -> Iterator[ScatteredGroup]:
    groups: dict[tuple[ImageKind, ...], ScatteredGroup] = {}
    for container in scattered_containers(source, section.offset, section.end):
        real = [image for image in container.images if not is_stub(source, image)]
        kinds = kinds_of(real)
        group = groups.setdefault(kinds, ScatteredGroup(section.name, kinds))
        group.containers += 1
        group.bytes += container.size
        group.code += sum(image.size for image in real)
        group.stubs += len(container.images) - len(real)
    yield from groups.values()
