"""What a cubin is: its SM, its kernels, and whether it is what a PTX asked for.

A cubin is an ELF64 file for machine 190. With ABI 7 the SM stands in byte 0 of the flags and the
PTX's in byte 2, and bit 11 marks `a`. With ABI 8 the SM stands in byte 1 and the PTX's in a note;
`a` is marked by bit 3 (CUDA 12.9) or by attribute 9 of `.nv.compat` (CUDA 13). `f` leaves no mark.
CUDA 12.9 uses ABI 8 from 10.0 on, CUDA 13 for all. Established by compiling for every target with
ptxas 12.9 and 13.0 (see the tests), and by published images; cuobjdump agrees.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_variants.errors import InputError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.elf import Elf, Section
from vllm_variants.fatbin.native.ptx import Ptx
from vllm_variants.fatbin.source import Malformed
from vllm_variants.model.capability import Capability, Target

MACHINE = 190
ABIS = (7, 8)
_ABI_AT, _FLAGS_AT = 8, 48
_SYMBOL = struct.Struct("<IBBHQQ")
_FUNCTION, _KERNEL = 2, 0x10  # STT_FUNC; STO_CUDA_ENTRY in a symbol's `other`
_COMPAT = ".nv.compat"
_ATTRIBUTE = struct.Struct("<BBH")
"""Of `.nv.compat`: form, attribute, value. Form 4 has `value` bytes more."""
_SPECIFIC = 9
_PTX_NOTES = (".note.nv.cuver", ".note.nv.cuinfo")  # CUDA 12.9, CUDA 13
_NOTE = struct.Struct("<III12sHH")
"""Sizes of owner and description, type, owner, then the note's version and the PTX's SM."""
_INFO = ".nv.info."
"""How the name of a section begins that describes a kernel, by attributes as in `.nv.compat`. Its `sh_info`
is the number of the section with the kernel's code."""
_WITH_BYTES = 4  # a form: as many bytes as the value says follow
_PARAMETER, _LARGE_PARAMETER = 0x17, 0x45
"""One parameter: a number, its place, its offset, and its size in bits 18 and up; where a kernel's take over
4 KB, the size has two bytes after the offset."""
_PLACE_AND_SIZE = struct.Struct("<4xHHI")


class WrongCubin(InputError):
    """A cubin that is broken, or not what was asked for."""


@dataclass(frozen=True)
class Cubin:
    """A cubin's headers: what it was made for (`virtual`: the PTX's capability), and its kernels.

    Of each kernel by its name the bytes of its parameters, in their order. `compat` is what its section
    `.nv.compat` holds, which image headers repeat; empty without one.
    """

    target: Target
    virtual: Capability | None
    kernels: Mapping[str, tuple[int, ...]]
    abi: int
    compat: bytes


class Bytes:
    """Bytes in memory as a `Source`."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self._data = name, len(data), data

    def at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; raise `Malformed` where there are fewer."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Malformed(self.name, offset, f"{length} bytes are missing: it ends at {self.size:#x}")
        return self._data[offset : offset + length]


def parse(data: bytes) -> Cubin:
    """Read a cubin's headers and symbol table; raise `WrongCubin`."""
    if len(data) < elfs.HEADER.size or data[:6] != b"\x7fELF\x02\x01":
        raise WrongCubin("it is no ELF file")
    if int.from_bytes(data[18:20], "little") != MACHINE:
        raise WrongCubin("it is an ELF file for another machine")
    source, abi = Bytes("the cubin", data), data[_ABI_AT]
    if abi not in ABIS:
        raise WrongCubin(f"it is of an unknown kind (ABI {abi})")
    try:
        elf = elfs.parse(source)
        compat = _section(source, elf, _COMPAT) or b""
        flags = int.from_bytes(data[_FLAGS_AT : _FLAGS_AT + 4], "little")
        target, virtual = _targets(source, elf, abi, flags, compat)
        return Cubin(target, virtual, _kernels(source, elf), abi, compat)
    except (Malformed, struct.error) as error:
        raise WrongCubin(f"it is broken ({error})") from error


def _targets(
    source: Bytes, elf: Elf, abi: int, flags: int, compat: bytes
) -> tuple[Target, Capability | None]:
    if abi == 7:
        specific, sm, virtual = bool(flags & 0x800), flags & 0xFF, flags >> 16 & 0xFF
    else:
        specific, sm, virtual = bool(flags & 0x8) or _marked_specific(compat), flags >> 8 & 0xFF, 0
        notes = (_section(source, elf, name) for name in _PTX_NOTES)
        if note := next(filter(None, notes), None):
            virtual = _NOTE.unpack_from(note)[5]
    ptx = Capability(*divmod(virtual, 10)) if virtual else None
    return Target(Capability(*divmod(sm, 10)), "a" if specific else ""), ptx


def _marked_specific(compat: bytes) -> bool:
    return any(value == 1 for attribute, value, _ in _attributes(compat) if attribute == _SPECIFIC)


def _parameters(info: bytes) -> tuple[int, ...]:
    sizes = {}
    for attribute, _, more in _attributes(info):
        if attribute in (_PARAMETER, _LARGE_PARAMETER):
            place, _, size = _PLACE_AND_SIZE.unpack_from(more)
            sizes[place] = size >> 18 if attribute == _PARAMETER else size & 0xFFFF
    return tuple(sizes[place] for place in sorted(sizes))


def _attributes(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Attribute, value, and the bytes that follow it."""
    at = 0
    while at < len(content):
        form, attribute, value = _ATTRIBUTE.unpack_from(content, at)
        at += _ATTRIBUTE.size
        size = value if form == _WITH_BYTES else 0
        yield attribute, value, content[at : at + size]
        at += size


def _section(source: Bytes, elf: Elf, name: str) -> bytes | None:
    section = next((section for section in elf.sections if section.name == name), None)
    return source.at(section.offset, section.file_size) if section else None


def _kernels(source: Bytes, elf: Elf) -> dict[str, tuple[int, ...]]:
    """The parameters of each kernel that has code, by its name."""
    described = {
        section.info: _parameters(source.at(section.offset, section.file_size))
        for section in elf.sections
        if section.name.startswith(_INFO)
    }
    kernels = {}
    for table in (section for section in elf.sections if section.name == ".symtab"):
        strings = _linked(elf, table)
        text = source.at(strings.offset, strings.file_size)
        data = source.at(table.offset, table.file_size)
        for name, info, other, place, _, _ in _SYMBOL.iter_unpack(data):
            code = elf.sections[place] if place < len(elf.sections) else None
            if info & 0xF == _FUNCTION and other & _KERNEL and code and code.file_size:
                kernel = text[name : text.find(b"\0", name)].decode("utf-8", "replace")
                kernels[kernel] = described.get(place, ())
    return kernels


def _linked(elf: Elf, table: Section) -> Section:
    if table.link >= len(elf.sections):
        raise WrongCubin("its symbol table names no table of strings")
    return elf.sections[table.link]


def marked(target: Target) -> Target:
    """What a cubin for `target` says that it is for: `f` leaves no mark."""
    return Target(target.capability, "a" if target.suffix == "a" else "")


def require(cubin: Cubin, ptx: Ptx, target: Target) -> None:
    """Raise `WrongCubin` unless a cubin for `target` has exactly the kernels of the PTX it came from.

    Each must have code, and take parameters of the same sizes where the PTX tells them.
    """
    if cubin.target != marked(target):
        raise WrongCubin(f"it is for {cubin.target}, not {marked(target)}")
    if cubin.virtual not in (None, ptx.target.capability):
        raise WrongCubin(f"it was made from PTX for {cubin.virtual}, not {ptx.target.capability}")
    if missing := sorted(ptx.entries - cubin.kernels.keys()):
        raise WrongCubin(f"it lacks {len(missing)} of {len(ptx.entries)} kernels, {missing[0]} for one")
    if more := sorted(cubin.kernels.keys() - ptx.entries):
        raise WrongCubin(f"it has {len(more)} kernels that the PTX has not, {more[0]} for one")
    for name, sizes in ptx.parameters.items():
        if (found := cubin.kernels[name]) != sizes:
            raise WrongCubin(f"its kernel {name} takes parameters of {_listed(found)}, not {_listed(sizes)}")


def _listed(sizes: Sequence[int]) -> str:
    return f"{', '.join(map(str, sizes)) or 'no'} bytes"
