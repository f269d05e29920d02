"""Stubs: what a container keeps when nothing in it can run on the device.

An emptied container breaks programs that load everything eagerly, so it keeps one image header of
a target it had, with the smallest payload that is still valid: a cubin without code, or PTX
without functions. The driver picks an image by its header and never reads one that cannot run.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache

from vllm_variants.fatbin.container import Container, Flag, Image
from vllm_variants.fatbin.source import Source
from vllm_variants.model.capability import Kind, Target

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_STRTAB, _SYMTAB, _NOTE = 3, 2, 7
_NOTE_HEADER = struct.Struct("<III12s")
"""Length of the owner's name and of the description, type, the owner's name."""
_PAYLOAD_SIZE = struct.Struct("<QI")  # at 0x08 of an image's header: payload size, compressed size
_FLAGS, _UNCOMPRESSED = 0x28, 0x38


@lru_cache(maxsize=256)
def empty_cubin(target: Target) -> bytes:
    """A cubin that holds no code, only the tables that every reader expects; under 700 bytes.

    Version and flags follow what nvcc 12.9 writes. Until 9.0 the SM stands in bytes 0 and 2 of the
    flags, and bit 11 marks `a`. From 10.0 on it stands in byte 1, bit 3 marks `a`, and two notes
    say the toolkit (12.9) and the SM again.
    """
    sm = target.capability.major * 10 + target.capability.minor
    specific = target.suffix == "a"
    sections = [
        _Section(b".shstrtab", _STRTAB),
        _Section(b".strtab", _STRTAB, b"\0"),
        _Section(b".symtab", _SYMTAB, bytes(24), link=2, align=8, info=1, entry=24),
    ]
    if target.capability.major < 10:
        return _elf(b"\x33\x07", 0x81, sm << 16 | 0x500 | sm | (0x800 if specific else 0), sections)
    toolkit = _NOTE_HEADER.pack(12, 28, 2000, b"NVIDIA Corp") + struct.pack("<6I4x", 129, 0, 0, 0, 0, 0)
    version = _NOTE_HEADER.pack(12, 12, 1000, b"NVIDIA Corp") + struct.pack("<HHII", 1, sm, 1, 1)
    sections += [
        _Section(b".note.nv.tkinfo", _NOTE, toolkit, flags=0x02000000, align=4),
        _Section(b".note.nv.cuver", _NOTE, version, flags=0x01000000, link=4, align=4),
    ]
    return _elf(b"\x41\x08", 1, 0x05000002 | sm << 8 | (8 if specific else 0), sections)


@dataclass(frozen=True)
class _Section:
    name: bytes
    type: int
    data: bytes = b""
    flags: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry: int = 0


def _elf(abi: bytes, version: int, flags: int, sections: list[_Section]) -> bytes:
    names = b"\0" + b"".join(section.name + b"\0" for section in sections)
    body, table = b"", bytes(_SECTION_HEADER.size)
    for each in sections:
        data = each.data or names
        name, at = names.index(each.name), _ELF_HEADER.size + len(body)
        table += _SECTION_HEADER.pack(
            name, each.type, each.flags, 0, at, len(data), each.link, each.info, each.align, each.entry
        )
        body += data.ljust(-(-len(data) // 8) * 8, b"\0")
    ident, at, count = b"\x7fELF\x02\x01\x01" + abi, _ELF_HEADER.size + len(body), len(sections) + 1
    return _ELF_HEADER.pack(ident, 2, 190, version, 0, 0, at, flags, 64, 56, 0, 64, count, 1) + body + table


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
        """Header and payload, as they stand in the file."""
        return self.header + self.payload


def stub_for(source: Source, container: Container) -> Stub | None:
    """The stub of a container, or None if it would save nothing (also: if there is one already).

    A stub is never larger than what it stands for: nothing in a library can move to make room.
    It takes the header of the container's smallest cubin, else of its smallest PTX.
    """
    candidates = [image for image in container.images if image.kind is Kind.CUBIN] or list(container.images)
    image = min(candidates, key=lambda image: (image.size, image.offset), default=None)
    if image is None or image.kind is None:
        return None
    payload = empty_cubin(image.target) if image.kind is Kind.CUBIN else empty_ptx(image.target)
    if image.header_size + len(payload) >= sum(each.size for each in container.images):
        return None
    flags = image.flags & ~(Flag.LZ4 | Flag.ZSTD)
    header = bytearray(source.at(image.offset, image.header_size))
    _PAYLOAD_SIZE.pack_into(header, 0x08, len(payload), 0)
    struct.pack_into("<Q", header, _FLAGS, flags)
    struct.pack_into("<Q", header, _UNCOMPRESSED, 0)
    standing = replace(image, payload_size=len(payload), compressed_size=0, uncompressed_size=0, flags=flags)
    return Stub(standing, bytes(header), payload)


LARGEST = 1024
"""Bytes of any stub's payload."""


def is_stub(source: Source, image: Image) -> bool:
    """Whether an image is a stub that an earlier slimming left."""
    if image.kind is None or image.payload_size > LARGEST or image.compression != "none":
        return False
    payload = empty_cubin(image.target) if image.kind is Kind.CUBIN else empty_ptx(image.target)
    if image.payload_size != len(payload):
        return False
    return source.at(image.offset + image.header_size, len(payload)) == payload
