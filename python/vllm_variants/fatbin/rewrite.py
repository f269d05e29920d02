"""What the new file is made of: container by container, then the pieces to write.

A container that loses images keeps its place: its header gets a new size, the images that stay
move up behind it, byte for byte, and what follows up to the next container is dead. Dead pages are
cut from the file (see `elf`); dead bytes that share a page with living ones are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_variants.fatbin.container import (
    CONTAINER_HEADER,
    Container,
    Image,
    containers,
    scattered_containers,
)
from vllm_variants.fatbin.elf import Elf, Section
from vllm_variants.fatbin.layout import Layout, Shift
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.fatbin.source import Source
from vllm_variants.fatbin.stub import Stub, stub_for
from vllm_variants.model.capability import Capability

DEVICE_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
"""Sections that hold containers and zeros, nothing else."""
RESOURCE_SECTIONS = (".cask_resource",)
"""Sections where libraries keep containers among their own tables. A container there that no device
can run may become a stub, in place; nothing else moves."""


@dataclass(frozen=True)
class Rewrite:
    """A container that loses images. `dead_end` is where the next container, or the section's end, is."""

    container: Container
    images: tuple[Image, ...]
    stub: Stub | None
    dead_end: int

    @property
    def size(self) -> int:
        """Of the container as it will be, in bytes."""
        body = len(self.stub.data) if self.stub else sum(image.size for image in self.images)
        return self.container.header_size + body

    @property
    def dead(self) -> tuple[int, int]:
        """The range of the file that nothing needs any more."""
        return self.container.offset + self.size, self.dead_end

    def header(self, source: Source) -> bytes:
        """The container's new header: the old one with a new size."""
        old = source.at(self.container.offset, self.container.header_size)
        magic, version, header_size, _ = CONTAINER_HEADER.unpack_from(old)
        size = self.size - header_size
        return CONTAINER_HEADER.pack(magic, version, header_size, size) + old[CONTAINER_HEADER.size :]


def device_sections(elf: Elf) -> list[Section]:
    """The sections with device code, by offset."""
    return _sections(elf, DEVICE_SECTIONS)


def resource_sections(elf: Elf) -> list[Section]:
    """The sections with containers among other data that may be slimmed, by offset."""
    return _sections(elf, RESOURCE_SECTIONS)


def _sections(elf: Elf, names: Sequence[str]) -> list[Section]:
    found = [s for s in elf.sections if s.name in names and s.file_size]
    return sorted(found, key=lambda section: section.offset)


def containers_in(source: Source, section: Section) -> Iterator[Container]:
    """The containers of a device or resource section."""
    walk = containers if section.name in DEVICE_SECTIONS else scattered_containers
    return walk(source, section.offset, section.end)


def rewrites(
    source: Source, section: Section, devices: Sequence[Capability], keep_ptx: bool = False
) -> Iterator[Rewrite]:
    """The containers of a section that would lose images on these devices; raise `Malformed`."""
    found = list(containers(source, section.offset, section.end))
    ends = [after.offset for _, after in pairwise(found)] + [section.end] * bool(found)
    for container, dead_end in zip(found, ends, strict=True):
        images = tuple(kept_images(container, devices, keep_ptx))
        if images:
            if len(images) < len(container.images):
                yield Rewrite(container, images, None, dead_end)
        elif stub := stub_for(source, container):
            yield Rewrite(container, (), stub, dead_end)


def resource_rewrites(
    source: Source, section: Section, devices: Sequence[Capability], keep_ptx: bool = False
) -> Iterator[Rewrite]:
    """The containers among other data that hold nothing for these devices, nor PTX that must stay."""
    for container in containers_in(source, section):
        if not kept_images(container, devices, keep_ptx) and (stub := stub_for(source, container)):
            yield Rewrite(container, (), stub, container.end)


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of the source, to be written at `to` in the new file."""

    to: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Literal:
    """New bytes, to be written at `to` in the new file."""

    to: int
    data: bytes


def pieces(
    source: Source, size: int, changes: Sequence[Rewrite], shift: Shift, layout: Layout
) -> Iterator[Copy | Literal]:
    """All that must be written, in the order of the new file; between pieces it is zero.

    `size` is how much of the source is content. The last pieces replace headers copied before.
    """
    copied = 0
    for change in changes:
        start = change.container.offset
        yield Copy(shift(copied), copied, start - copied)
        header = change.header(source)
        to = shift(start)
        yield Literal(to, header + change.stub.data if change.stub else header)
        to += len(header)
        for image in change.images:
            yield Copy(to, image.offset, image.size)
            to += image.size
        copied = change.dead_end
    yield Copy(shift(copied), copied, size - copied)
    yield Literal(0, layout.header)
    if layout.section_headers:
        yield Literal(layout.section_headers_at, layout.section_headers)
    yield Literal(layout.program_headers_at, layout.program_headers)
