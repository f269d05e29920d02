"""Inputs for the fuzzer: whole libraries and wheels of many shapes, in memory, and ways to spoil them.

A shape is drawn from a `random.Random`; what is made of it is valid, so whatever refuses it is wrong.
`spoil` changes bytes where they matter: fields of headers are found again in any input, also in one
that was spoilt or slimmed before.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import lz4.block
import zstandard

from vllm_variants.fatbin.stub import empty_cubin, empty_ptx
from vllm_variants.model.capability import Target

X86_64, AARCH64 = 62, 183
PAGES = {X86_64: 0x1000, AARCH64: 0x10000}
MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_IMAGE = struct.Struct("<HHIQIIHHIIIQQQ")
_FILLING = (bytes(range(1, 256)) * 3000)[: 3 << 18]
_NOISE = random.Random(0).randbytes(3 << 18)
_TARGETS = (
    "sm_50", "sm_52", "sm_70", "sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a",
    "sm_100", "sm_100a", "sm_100f", "sm_101", "sm_103a", "sm_110", "sm_120", "sm_120a", "sm_120f",
)  # fmt: skip
_LZ4, _ZSTD, _A, _F, _BLACKWELL = 0x2000, 0x8000, 1 << 20, 1 << 21, 1 << 24


@dataclass(frozen=True, slots=True)
class Part:
    """A section to be laid out: `flags` 2 is in memory, 3 also writable; `memory`: bytes not in the file.

    `type` is 1 for bytes, 2 for symbols, 3 for strings.
    """

    name: str
    data: bytes
    flags: int = 2
    align: int = 16
    memory: int = 0
    type: int = 1


@cache
def _empty(word: str, ptx: bool) -> bytes:
    return empty_ptx(Target.parse(word)) if ptx else empty_cubin(Target.parse(word))


def image(chance: random.Random, big: int, stub: bool = False) -> bytes:
    """One image: cubin, PTX or of a kind that is not known; tiny, of up to `big` bytes, or a stub."""
    word = chance.choice(_TARGETS)
    code = chance.choices((2, 1, 8, 0x40), (70, 22, 6, 2))[0]
    size = chance.choice((0, 8, 16, 40, 56, 200, 700, 3000, chance.randint(0, big), chance.randint(0, big)))
    digits, suffix = word[3:].rstrip("af"), word[-1] if word[-1] in "af" else ""
    flags = 0x11 | {"a": _A, "f": _F, "": 0}[suffix]
    flags |= _BLACKWELL if int(digits) >= 100 and code == 2 else 0
    compression = chance.choices((0, _LZ4, _ZSTD, 1 << 30), (70, 14, 14, 2))[0]
    payload = _FILLING[: size // 8 * 8]
    if stub:
        payload, compression = _empty(word, code == 1), 0
    elif code == 2 and not compression and len(payload) > 700:
        payload = _empty(word, False) + payload[700:]
    header = chance.choice((64, 64, 64, 80, 96))
    version = (
        (chance.choice((0, 4, 8)), chance.choice((7, 8, 9))) if code == 1 else (chance.choice((2, 7, 8)), 1)
    )
    compressed, uncompressed = 0, 0
    if compression & (_LZ4 | _ZSTD):
        uncompressed = len(payload)
        payload = _stored(
            payload[: size // 2] + _NOISE[: uncompressed - len(payload[: size // 2])], compression
        )
        compressed = len(payload)
        payload += bytes(-compressed % 8)
    fields = (code, 0x101, header, len(payload), compressed, 64 if header > 64 else 0, *version, int(digits))
    head = _IMAGE.pack(*fields, 0, 0, flags | compression, 0, uncompressed)
    return head.ljust(header, b"\0") + payload


def _stored(raw: bytes, compression: int) -> bytes:
    """As compilers store it: an LZ4 block, or one zstd frame."""
    if compression == _LZ4:
        return bytes(lz4.block.compress(raw, store_size=False))
    return zstandard.ZstdCompressor(level=1).compress(raw)


def container(images: Sequence[bytes]) -> bytes:
    """A fat binary of these images."""
    body = b"".join(images)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def fatbin(chance: random.Random, big: int) -> bytes:
    """A section's containers: none, many, of none, one or many images, with zeros between them."""
    padding = bytes(chance.choice((0, 0, 8, 24, 5000)))
    found = []
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        largest = chance.choice((60, big, big, 2 * big))
        count = chance.choice((0, 1, 1, 1, 2, 2, 3, 5))
        stub = count == 1 and chance.random() < 0.2  # an earlier slimming leaves it alone in its container
        found.append(container([image(chance, largest, stub) for _ in range(count)]))
    return b"".join(each + padding for each in found) or bytes(chance.choice((0, 0, 24)))


def _resources(chance: random.Random, big: int) -> bytes:
    """Containers among tables, and a magic word that is no container."""
    pieces = []
    for _ in range(chance.randint(1, 4)):
        pieces.append(_FILLING[: chance.randint(0, 40) * 8])
        pieces.append(container([image(chance, big)]) if chance.random() < 0.8 else MAGIC + bytes(12))
    return b"".join(pieces) + bytes(chance.choice((0, 8)))


def library(chance: random.Random) -> bytes:
    """A whole shared library of a random shape."""
    machine = chance.choices((X86_64, AARCH64), (85, 15))[0]
    page = PAGES[machine]
    big = 3 * page if machine == AARCH64 else chance.choice((5000, 20_000, 70_000))
    names = [name for name in (".nv_fatbin", "__nv_relfatbin") if chance.random() < 0.75]
    device = [Part(name, fatbin(chance, big), 2, chance.choice((8, 16))) for name in names]
    if chance.random() < 0.3:
        device.append(Part(".cask_resource", _resources(chance, big), chance.choice((2, 3))))
    if chance.random() < 0.05:
        device.append(Part(".nv_fatbin", fatbin(chance, 2000)))
    large = chance.choice((0, 0, 0, 64, page, 4 * page, 16 * page))
    rest = [
        Part(".text", b"\xc3" * chance.randint(1, 600), 6),
        Part(".rodata", _FILLING[: chance.randint(0, 3000)], 2, chance.choice((1, 8, 64))),
        Part(".data", _FILLING[: chance.randint(1, 3000)], 3, large or 8),
    ]
    parts = [*device, *rest[:2]]
    chance.shuffle(parts)
    groups: list[list[Part]] = [[]]
    for part in parts:
        if groups[-1] and chance.random() < 0.35:
            groups.append([])
        groups[-1].append(part)
    bss = Part(".bss", b"", 3, 8, chance.choice((0, 9, 9000, 100_000)))
    alone = bss.memory > 0 and chance.random() < 0.15
    groups += [[rest[2]], [bss]] if alone else [[rest[2], bss]]
    loose = [Part(".comment", b"not loaded, not to be lost".ljust(40, b"."), 0)]
    if chance.random() < 0.2:
        loose.append(Part(".nv_fatbin_debug", _FILLING[:999], 0))
    if chance.random() < 0.5:
        loose += [Part(".symtab", _FILLING[: 24 * chance.randint(1, 400)], 0, type=2)]
        loose += [Part(".strtab", _FILLING[:700], 0, type=3), Part(".debug_info", _NOISE[:5000], 0)]
        chance.shuffle(loose)
    gap = chance.choice((0, 0, 0, 40, page, 3 * page + 9))
    align = chance.choice((page, page, 4 * page, 16 * page, 512 * page))
    return laid_out(machine, groups, loose, align, gap, chance.random() if chance.random() < 0.5 else None)


def laid_out(
    machine: int,
    groups: Sequence[Sequence[Part]],
    loose: Sequence[Part],
    align: int,
    gap: int = 0,
    adrift: float | None = None,
) -> bytes:
    """An ELF64 shared library: a PT_LOAD for each group, with `align`, and sections outside of memory.

    Between two segments are `gap` bytes that nothing describes, as patchelf leaves them. A segment without
    bytes is where it comes in turn, or at the share `adrift` of the file, as near as its address allows.
    """
    page = PAGES[machine]
    groups = [group for group in groups if group]
    align = max([align if align > page else page, *(part.align for group in groups for part in group)])
    count = len(groups) + 1
    content = bytearray(_HEADER.size + count * _SEGMENT.size)
    sections: list[tuple[str, int, int, int, int, int, int]] = []
    segments = []
    for number, group in enumerate(groups):
        if number:
            content += _NOISE[:gap]
            content += bytes(-len(content) % 16)
        base = 0 if number == 0 else len(content)
        # In memory each segment starts where its offset, modulo the alignment, says.
        address = 0 if number == 0 else sections_end(segments, align) + base % align
        memory = 0
        for part in group:
            at = (address + len(content) - base) % part.align
            content += bytes((part.align - at) % part.align if part.data else 0)
            where = address + len(content) - base
            kind = 1 if part.data or not part.memory else 8
            size = len(part.data) or part.memory
            sections.append((part.name, kind, part.flags, where, len(content), size, part.align))
            content += part.data
            memory += part.memory
        length = len(content) - base
        flags = (
            4 | (1 if any(p.flags & 4 for p in group) else 0) | (2 if any(p.flags & 1 for p in group) else 0)
        )
        segments.append((1, flags, base, address, address, length, length + memory, align))
    for part in loose:
        sections.append((part.name, part.type, 0, 0, len(content), len(part.data), 1))
        content += part.data
    if adrift is not None:
        segments = [_adrift(each, int(adrift * len(content))) for each in segments]
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    sections.append((".shstrtab", 3, 0, 0, len(content), len(names), 1))
    content += names
    content += bytes(-len(content) % 8)
    table = len(content)
    content += bytes(64)
    for name, kind, flags, address, offset, size, alignment in sections:
        at = names.index(name.encode() + b"\0")
        content += _SECTION.pack(at, kind, flags, address, offset, size, 0, 0, alignment, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    number = len(sections)
    header = (ident, 3, machine, 1, 0, 64, table, 0, 64, 56, count, 64, number + 1, number)
    content[:64] = _HEADER.pack(*header)
    stack = (0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    content[64 : 64 + count * 56] = b"".join(_SEGMENT.pack(*each) for each in (*segments, stack))
    return bytes(content)


def _adrift(segment: tuple[int, ...], near: int) -> tuple[int, ...]:
    """A segment without bytes at an offset up to `near`, on its address's place in the alignment."""
    kind, flags, offset, address, physical, size, memory, align = segment
    place = address % align
    if size or place > near:
        return segment
    offset = place + (near - place) // align * align
    return kind, flags, offset, address, physical, size, memory, align


def sections_end(segments: Sequence[tuple[int, ...]], align: int) -> int:
    """The first address, a multiple of `align`, behind all segments and one page more."""
    end = max(segment[3] + segment[6] for segment in segments)
    return (end + align) // align * align + align


def wheel(members: Sequence[bytes], chance: random.Random) -> bytes:
    """A wheel with these libraries, stored or compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for number, data in enumerate(members):
            method = chance.choice(
                (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
            )
            zipped.writestr(f"package/lib{number}.so", data, method, 1)
        zipped.writestr("package-1.dist-info/RECORD", "")
    return file.getvalue()


# ── spoiling ─────────────────────────────────────────────────────────────────────────────────

_HEADER_FIELDS = (
    (0, 4),
    (4, 1),
    (5, 1),
    (16, 2),
    (18, 2),
    (32, 8),
    (40, 8),
    (54, 2),
    (56, 2),
    (58, 2),
    (60, 2),
    (62, 2),
)
_SEGMENT_FIELDS = ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8))
_SECTION_FIELDS = ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (48, 8))
_CONTAINER_FIELDS = ((0, 4), (4, 2), (6, 2), (8, 8))
_IMAGE_FIELDS = (
    (0, 2),
    (2, 2),
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 2),
    (26, 2),
    (28, 4),
    (40, 8),
    (48, 8),
    (56, 8),
)
_ZIP_FIELDS = (*((at, 2) for at in range(4, 46, 2)), *((at, 4) for at in (16, 18, 20, 22, 24, 42)))


def fields(data: bytes) -> list[tuple[int, int]]:
    """Where headers' fields are, as far as the headers can be followed: (offset, bytes)."""
    found: list[tuple[int, int]] = []
    if data[:4] == b"PK\x03\x04":
        for magic in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"):
            at = data.find(magic)
            while at >= 0 and len(found) < 2000:
                found += [(at + offset, width) for offset, width in _ZIP_FIELDS]
                at = data.find(magic, at + 4)
    elif len(data) >= 64:
        found += _HEADER_FIELDS
        _, _, _, _, _, phoff, shoff, _, _, _, phnum, _, shnum, _ = _HEADER.unpack_from(data)
        for start, count, size, layout in (
            (phoff, phnum, 56, _SEGMENT_FIELDS),
            (shoff, shnum, 64, _SECTION_FIELDS),
        ):
            for number in range(min(count, 40)):
                found += [(start + number * size + offset, width) for offset, width in layout]
        at = data.find(MAGIC)
        while at >= 0 and len(found) < 2000:
            found += [(at + offset, width) for offset, width in _CONTAINER_FIELDS]
            start, end = at + 16, at + 16 + int.from_bytes(data[at + 8 : at + 16], "little")
            for _ in range(8):
                if start + 64 > min(end, len(data)):
                    break
                found += [(start + offset, width) for offset, width in _IMAGE_FIELDS]
                start += int.from_bytes(data[start + 4 : start + 8], "little")
                start += (
                    int.from_bytes(data[start + 8 : start + 16], "little") if start + 16 < len(data) else 64
                )
            at = data.find(MAGIC, at + 16)
    return [(at, width) for at, width in found if at + width <= len(data)]


def spoil(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """`data` with one to four changes: fields of headers, bytes, ranges; parts of `other` may come in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        if not changed:
            break
        chance.choices(_WAYS, _WEIGHTS)[0](changed, other, chance)
    return bytes(changed)


def _set_field(data: bytearray, other: bytes, chance: random.Random) -> None:
    places = fields(bytes(data))
    if not places:
        return
    at, width = chance.choice(places)
    old = int.from_bytes(data[at : at + width], "little")
    elsewhere, more = chance.choice(places)
    value = chance.choice(
        (
            0, 1, 2, 63, 64, 0x1000, 0xFFFF,
            (1 << 31) - 1, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1,
            old + 1, old - 1, old + 8, old - 8, old + 0x1000, old - 0x1000, old * 2, old // 2, len(data),
            len(data) - at, at, old ^ 1 << chance.randrange(8 * width),
            int.from_bytes(data[elsewhere : elsewhere + more], "little"),
        )
    )  # fmt: skip
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def _flip(data: bytearray, other: bytes, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _range(data: bytearray, chance: random.Random) -> tuple[int, int]:
    unit = chance.choice((1, 8, 56, 64, 0x1000))
    start = chance.randrange(len(data)) // unit * unit
    return start, min(start + unit * chance.choice((1, 1, 2, 5)), len(data))


def _remove(data: bytearray, other: bytes, chance: random.Random) -> None:
    start, end = _range(data, chance)
    del data[start:end]


def _double(data: bytearray, other: bytes, chance: random.Random) -> None:
    start, end = _range(data, chance)
    data[end:end] = data[start:end]


def _clear(data: bytearray, other: bytes, chance: random.Random) -> None:
    start, end = _range(data, chance)
    data[start:end] = bytes([chance.choice((0, 0, 0xFF))]) * (end - start)


def _swap(data: bytearray, other: bytes, chance: random.Random) -> None:
    start, end = _range(data, chance)
    length = min(end - start, len(data) - end)
    at = chance.randint(0, len(data) - length)
    data[start : start + length], data[at : at + length] = (
        data[at : at + length],
        data[start : start + length],
    )


def _cut(data: bytearray, other: bytes, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _lengthen(data: bytearray, other: bytes, chance: random.Random) -> None:
    data += chance.choice((bytes(1), bytes(4096), _FILLING[:99], MAGIC + bytes(12)))


def _take(data: bytearray, other: bytes, chance: random.Random) -> None:
    """A part of the other input, mostly from one of its containers on, in place of ours or between it."""
    if not other:
        return
    at = other.find(MAGIC, chance.randrange(len(other)))
    start = at if at >= 0 else chance.randrange(len(other))
    piece = other[start : start + chance.choice((16, 80, 300, 5000))]
    to = data.find(MAGIC, chance.randrange(len(data)))
    to = to if to >= 0 else chance.randrange(len(data))
    data[to : to + (len(piece) if chance.random() < 0.7 else 0)] = piece


_WAYS = (_set_field, _flip, _remove, _double, _clear, _swap, _cut, _lengthen, _take)
_WEIGHTS = (50, 12, 6, 6, 6, 6, 5, 3, 6)
