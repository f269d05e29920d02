"""CUDA fat binaries: containers of images, parsed from the bytes of a section.

A container is a 16-byte header and images, one after another; each image is a header and a
payload, a cubin or PTX for one target. All numbers are little endian. Sizes are read, never
assumed. The format is NVIDIA's and not documented by it; docs/fatbin.md tells how each field was
established.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from functools import lru_cache

from vllm_variants.fatbin.source import Malformed, Source, find_all, next_nonzero
from vllm_variants.model.capability import Capability, Kind, Target

MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER_HEADER = struct.Struct("<IHHQ")
"""Magic, version, header size, size of what follows."""
IMAGE_HEADER = struct.Struct("<HHIQIIHHIIIQQQ")
"""Kind, version, header size, payload size, compressed size, options' offset, minor and major of
the code's own version, target, identifier's offset and length, flags, zero, uncompressed size."""

_LARGEST_HEADER = 1 << 16
"""Bytes of an image's header; 64 to 184 were seen."""
_MOST_IMAGES = 1 << 20
"""In one section; tens of thousands were seen, and each takes memory here."""

_KINDS = {1: Kind.PTX, 2: Kind.CUBIN}
_ARCHITECTURES = range(10, 1000)  # sm_10 was the first


class Flag(IntFlag):
    """An image's flags, as far as they are known."""

    BITS_64 = 0x1
    DEBUG = 0x2
    LINUX = 0x10
    LZ4 = 0x2000
    ZSTD = 0x8000
    ARCHITECTURE_SPECIFIC = 1 << 20
    FAMILY_SPECIFIC = 1 << 21
    BLACKWELL = 1 << 24  # on every cubin for 10.0 and later; what it means is not known


_KNOWN_FLAGS = sum(Flag)
_LZ4, _ZSTD = int(Flag.LZ4), int(Flag.ZSTD)  # plain numbers: there are tens of thousands of images
_COMPRESSIONS = {0: "none", _LZ4: "lz4", _ZSTD: "zstd", _LZ4 | _ZSTD: "zstd"}
_SUFFIXES = int(Flag.ARCHITECTURE_SPECIFIC | Flag.FAMILY_SPECIFIC)


@lru_cache(maxsize=1024)
def _target(architecture: int, flags: int) -> Target:
    suffix = "f" if flags & Flag.FAMILY_SPECIFIC else "a" if flags & Flag.ARCHITECTURE_SPECIFIC else ""
    return Target(Capability(*divmod(architecture, 10)), suffix)


@dataclass(frozen=True, slots=True)
class Image:
    """One image; offsets and sizes in bytes, the offset counted from the file's start.

    `version` is the code's own, major and minor: of the PTX language for PTX.
    """

    offset: int
    header_size: int
    payload_size: int
    compressed_size: int
    uncompressed_size: int
    code: int
    version: tuple[int, int]
    architecture: int
    flags: int

    @property
    def size(self) -> int:
        """Of the header and the payload as they are stored."""
        return self.header_size + self.payload_size

    @property
    def kind(self) -> Kind | None:
        """Cubin or PTX; None for what is neither (LTO-IR and others), or for no SM that could be."""
        return _KINDS.get(self.code) if self.architecture in _ARCHITECTURES else None

    @property
    def target(self) -> Target:
        """What it was compiled for."""
        return _target(self.architecture, self.flags & _SUFFIXES)

    @property
    def compression(self) -> str:
        """How the payload is stored: `lz4`, `zstd` or `none`."""
        return _COMPRESSIONS[self.flags & (_LZ4 | _ZSTD)]

    @property
    def original_size(self) -> int:
        """Of the payload once decompressed."""
        return self.uncompressed_size if self.compression != "none" else self.payload_size

    @property
    def known(self) -> bool:
        """Whether its kind and every flag is understood; what is not must be kept."""
        return self.kind is not None and not self.flags & ~_KNOWN_FLAGS


@dataclass(frozen=True, slots=True)
class Container:
    """One fat binary: `size` covers its header and all it holds."""

    offset: int
    header_size: int
    size: int
    images: tuple[Image, ...]

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.size


def container_at(source: Source, offset: int, limit: int) -> Container:
    """Parse the container at `offset`, which must end by `limit`; raise `Malformed`."""
    if limit - offset < CONTAINER_HEADER.size:
        raise Malformed(source.name, offset, "a fat binary's header is cut off")
    magic, version, header_size, body = CONTAINER_HEADER.unpack(source.at(offset, CONTAINER_HEADER.size))
    if magic != 0xBA55ED50:
        raise Malformed(source.name, offset, f"no fat binary where one must be (found {magic:#010x})")
    if version != 1:
        raise Malformed(source.name, offset, f"a fat binary of version {version}, known is 1")
    if header_size < CONTAINER_HEADER.size:
        raise Malformed(source.name, offset, f"a fat binary's header of {header_size} bytes")
    if header_size + body > limit - offset:
        raise Malformed(
            source.name, offset, f"a fat binary of {header_size + body} bytes where {limit - offset} are"
        )
    end = offset + header_size + body
    return Container(
        offset, header_size, header_size + body, tuple(_images(source, offset + header_size, end))
    )


def _images(source: Source, at: int, end: int) -> Iterator[Image]:
    count = 0
    while at < end:
        if (count := count + 1) > _MOST_IMAGES:
            raise Malformed(source.name, at, f"more than {_MOST_IMAGES} images in one fat binary")
        if end - at < IMAGE_HEADER.size:
            if next_nonzero(source, at, end) == end:
                return
            raise Malformed(
                source.name, at, f"an image's header in the last {end - at} bytes of its fat binary"
            )
        image = _image(source, at)
        if not IMAGE_HEADER.size <= image.header_size <= _LARGEST_HEADER:
            raise Malformed(source.name, at, f"an image's header of {image.header_size} bytes")
        if image.size > end - at:
            raise Malformed(source.name, at, f"an image of {image.size} bytes where {end - at} are")
        yield image
        at += image.size


def _image(source: Source, at: int) -> Image:
    fields = IMAGE_HEADER.unpack(source.at(at, IMAGE_HEADER.size))
    (
        code,
        _,
        header_size,
        payload_size,
        compressed_size,
        _,
        minor,
        major,
        architecture,
        _,
        _,
        flags,
        _,
        uncompressed,
    ) = fields
    return Image(
        at,
        header_size,
        payload_size,
        compressed_size,
        uncompressed,
        code,
        (major, minor),
        architecture,
        flags,
    )


def containers(source: Source, start: int, end: int) -> Iterator[Container]:
    """The containers that fill `source[start:end]`, with zeros between them; raise `Malformed`."""
    count = 0
    while (start := next_nonzero(source, start, end)) < end:
        container = container_at(source, start, end)
        if (count := count + 1 + len(container.images)) > _MOST_IMAGES:
            raise Malformed(source.name, start, f"more than {_MOST_IMAGES} fat binaries and images")
        yield container
        start = container.end


def scattered_containers(source: Source, start: int, end: int) -> Iterator[Container]:
    """The containers found among other data in `source[start:end]`; what only looks like one is passed."""
    for at in find_all(source, MAGIC, start, end):
        if at < start:  # inside the container before
            continue
        try:
            container = container_at(source, at, end)
        except Malformed:
            continue
        yield container
        start = container.end
