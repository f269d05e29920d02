"""What the new file is made of: container by container, then the pieces to write.

A container that changes keeps its place: its header gets a new size, the images that it will hold
stand behind it, and what follows up to the next container is dead. Dead pages are cut from the file
(see `layout`); dead bytes that share a page with living ones are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

from vllm_variants.fatbin.codecs import Encoded, Encoding
from vllm_variants.fatbin.container import (
    CONTAINER_HEADER,
    Container,
    Image,
    containers,
    scattered_containers,
)
from vllm_variants.fatbin.elf import Elf, Section
from vllm_variants.fatbin.layout import Copy, Layout, Literal
from vllm_variants.fatbin.new_image import NewImage, recompressed
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.fatbin.source import Source
from vllm_variants.fatbin.stub import Stub, is_stub, stub_for
from vllm_variants.model.capability import Capability

DEVICE_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
"""Sections that hold containers and zeros, nothing else."""
RESOURCE_SECTIONS = (".cask_resource",)
"""Sections where libraries keep containers among their own tables. A container there that no device
can run may become a stub, in place; nothing else moves."""


Images = tuple[Image | NewImage, ...]
"""What a container holds, in order: images of the source, byte for byte, and new ones."""


@dataclass(frozen=True)
class Rewrite:
    """A container as it will be. `dead_end` is where the next container, or the section's end, is."""

    container: Container
    images: Images
    stub: Stub | None
    dead_end: int

    @property
    def changed(self) -> bool:
        """Whether it will hold anything but the images that it holds now."""
        return bool(self.stub) or self.images != self.container.images

    @property
    def compiled(self) -> bool:
        """Whether it gets a cubin that was compiled from its PTX."""
        return any(isinstance(image, NewImage) and image.compiled for image in self.images)

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
    source: Source,
    section: Section,
    devices: Sequence[Capability],
    keep_ptx: bool = False,
    compiled: Mapping[int, Images] = MappingProxyType({}),
) -> Iterator[Rewrite]:
    """Every container of a device section as it will be on these devices; raise `Malformed`.

    Without devices all images stay. `compiled` has the images of containers, by offset, that got
    cubins of their own.
    """
    found = list(containers(source, section.offset, section.end))
    ends = [after.offset for _, after in pairwise(found)] + [section.end] * bool(found)
    for container, dead_end in zip(found, ends, strict=True):
        images = compiled.get(container.offset) or _kept(container, devices, keep_ptx)
        stub = None if images else stub_for(source, container)
        yield Rewrite(container, images if images or stub else container.images, stub, dead_end)


def _kept(container: Container, devices: Sequence[Capability], keep_ptx: bool) -> tuple[Image, ...]:
    return tuple(kept_images(container, devices, keep_ptx)) if devices else container.images


def resource_rewrites(
    source: Source, section: Section, devices: Sequence[Capability], keep_ptx: bool = False
) -> Iterator[Rewrite]:
    """The containers among other data that hold nothing for these devices, nor PTX that must stay."""
    for container in containers_in(source, section):
        if not _kept(container, devices, keep_ptx) and (stub := stub_for(source, container)):
            yield Rewrite(container, (), stub, container.end)


def compressed(
    source: Source,
    change: Rewrite,
    allowed: Collection[Encoding],
    known: Callable[[Image], Encoded | None],
) -> Rewrite:
    """The container with each image of the source that stays stored in the smallest of these encodings.

    `known` may have the smallest payload of an image already. A stub of an earlier slimming stays what it
    is, so that it is known for one.
    """
    images = tuple(
        image
        if isinstance(image, NewImage) or is_stub(source, image)
        else recompressed(source, image, allowed, known)
        for image in change.images
    )
    return replace(change, images=images)


def pieces(source: Source, changes: Sequence[Rewrite], layout: Layout) -> Iterator[Copy | Literal]:
    """All that must be written, in the order of the new file; between pieces it is zero.

    `changes` are in the order of their offsets. The last pieces replace headers copied before.
    """
    copied = 0
    for change in changes:
        start = change.container.offset
        yield from layout.copies(copied, start)
        yield from _container(source, change, layout.shift(start))
        copied = change.dead_end
    yield from layout.copies(copied, layout.end)
    yield from layout.tail
    yield Literal(0, layout.header)
    yield Literal(layout.program_headers_at, layout.program_headers)
    if layout.section_headers:
        yield Literal(layout.section_headers_at, layout.section_headers)


def _container(source: Source, change: Rewrite, to: int) -> Iterator[Copy | Literal]:
    header = change.header(source)
    yield Literal(to, header + change.stub.data if change.stub else header)
    to += len(header)
    for image in change.images:
        yield Literal(to, image.data) if isinstance(image, NewImage) else Copy(to, image.offset, image.size)
        to += image.size
