"""Stubs: what a container keeps when nothing in it can run on the device.

An emptied container breaks programs that load everything eagerly, so it keeps one image header of
a target it had, with the smallest payload that is still valid: a cubin without code, or PTX
without functions. The driver picks an image by its header and never reads one that cannot run.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from vllm_variants.capability import Kind, Target
from vllm_variants.fatbin.container import Container, Flag, Image
from vllm_variants.fatbin.source import Source

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_NAMES = b"\0.shstrtab\0".ljust(16, b"\0")
_PAYLOAD_SIZE = struct.Struct("<QI")  # at 0x08 of an image's header: payload size, compressed size
_FLAGS, _UNCOMPRESSED = 0x28, 0x38


def empty_cubin(target: Target) -> bytes:
    """A cubin that holds no code: an ELF header, a table of names, two section headers; 208 bytes.

    Version and flags follow what nvcc 12.9 writes: until 9.0 the SM stands in bytes 0 and 2 of the
    flags and bit 11 marks `a`; from 10.0 on it stands in byte 1 and bit 3 marks `a`.
    """
    sm = target.capability.major * 10 + target.capability.minor
    modern = target.capability.major >= 10
    specific = target.suffix == "a"
    if modern:
        ident, version, flags = (0x41, 8), 1, sm << 8 | (0x0600000A if specific else 0x04000002)
    else:
        ident, version, flags = (0x33, 7), 0x81, sm << 16 | 0x500 | sm | (0x800 if specific else 0)
    names_at = _ELF_HEADER.size
    sections_at = names_at + len(_NAMES)
    magic = b"\x7fELF\x02\x01\x01" + bytes(ident)
    header = _ELF_HEADER.pack(
        magic, 2, 190, version, 0, 0, sections_at, flags, 64, 0, 0, _SECTION_HEADER.size, 2, 1
    )
    names = _SECTION_HEADER.pack(1, 3, 0, 0, names_at, 11, 0, 0, 1, 0)
    return header + _NAMES + bytes(_SECTION_HEADER.size) + names


def empty_ptx(target: Target) -> bytes:
    """PTX that holds no function."""
    name = target.sm
    return f".version 8.8\n.target {name}\n.address_size 64\n".encode().ljust(56, b"\0")


@dataclass(frozen=True)
class Stub:
    """The image that stands for `image`: a changed copy of its header, and a payload."""

    image: Image
    header: bytes
    payload: bytes

    @property
    def data(self) -> bytes:
        return self.header + self.payload


def stub_for(source: Source, container: Container) -> Stub | None:
    """The stub of a container, or None if it would save nothing (also: if there is one already).

    It takes the header of the container's smallest cubin, else of its smallest PTX.
    """
    candidates = [image for image in container.images if image.kind is Kind.CUBIN] or list(container.images)
    image = min(candidates, key=lambda image: (image.size, image.offset), default=None)
    if image is None or image.kind is None:
        return None
    payload = empty_cubin(image.target) if image.kind is Kind.CUBIN else empty_ptx(image.target)
    if image.payload_size <= len(payload) and len(container.images) == 1:
        return None
    flags = image.flags & ~(Flag.LZ4 | Flag.ZSTD)
    header = bytearray(source.at(image.offset, image.header_size))
    _PAYLOAD_SIZE.pack_into(header, 0x08, len(payload), 0)
    struct.pack_into("<Q", header, _FLAGS, flags)
    struct.pack_into("<Q", header, _UNCOMPRESSED, 0)
    standing = replace(image, payload_size=len(payload), compressed_size=0, uncompressed_size=0, flags=flags)
    return Stub(standing, bytes(header), payload)


def is_stub(source: Source, image: Image) -> bool:
    """Whether an image is a stub that an earlier slimming left."""
    if image.kind is None or image.compression != "none":
        return False
    payload = empty_cubin(image.target) if image.kind is Kind.CUBIN else empty_ptx(image.target)
    if image.payload_size != len(payload):
        return False
    return source.at(image.offset + image.header_size, len(payload)) == payload
