"""Fat binaries and libraries made by hand: small, whole, and readable by readelf and cuobjdump."""

from __future__ import annotations

import struct
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_variants.fatbin.stub import empty_cubin
from vllm_variants.model.capability import Capability, Kind, Target

SHARED = 3
X86_64, AARCH64 = 62, 183


@dataclass(frozen=True)
class Made:
    """An image to be written: `word` is `sm_90a` or `compute_80`; `code`, `version` override the kind's."""

    word: str
    payload: bytes = b""
    header_size: int = 64
    flags: int = 0
    code: int | None = None
    version: tuple[int, int] | None = None

    @property
    def kind(self) -> Kind:
        return Kind.PTX if self.word.startswith("compute") else Kind.CUBIN

    @property
    def target(self) -> Target:
        return Target.parse(self.word)

    @property
    def data(self) -> bytes:
        capability, suffix = self.target.capability, self.target.suffix
        flags = 0x11 | self.flags | {"": 0, "a": 1 << 20, "f": 1 << 21}[suffix]
        code = self.code or {Kind.PTX: 1, Kind.CUBIN: 2}[self.kind]
        payload = self.payload.ljust(-(-len(self.payload) // 8) * 8, b"\0")
        number = capability.major * 10 + capability.minor
        major, minor = self.version or {Kind.PTX: (8, 8), Kind.CUBIN: (1, 8)}[self.kind]
        options = 64 if self.kind is Kind.PTX and self.header_size >= 80 else 0
        header = struct.pack(
            "<HHIQIIHHI", code, 0x101, self.header_size, len(payload), 0, options, minor, major, number
        )
        header += struct.pack("<IIQQQ", 0, 0, flags, 0, 0)
        header += struct.pack("<IIQ", 0x48, 0, 0) if options else b""
        return header.ljust(self.header_size, b"\xee") + payload


def cubin(word: str, size: int = 900) -> Made:
    """A cubin that cuobjdump accepts, of `size` bytes or a little more; its filling tells targets apart."""
    valid = empty_cubin(Target.parse(word))
    filling = (word.encode() + b" machine code ") * (size // (len(word) + 14) + 1)
    return Made(word, valid + filling[: max(size - len(valid), 0)])


def ptx(word: str, size: int = 0) -> Made:
    """PTX text of at least `size` bytes."""
    text = f".version 8.8\n.target {word.replace('compute', 'sm')}\n.address_size 64\n".encode()
    return Made(word, text + b"// " + b"p" * max(size - len(text), 0) + b"\n\0", header_size=80)


def container(*images: Made) -> bytes:
    body = b"".join(image.data for image in images)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def section(*containers: Sequence[Made], padding: int = 0) -> bytes:
    """A section's bytes: containers, each followed by `padding` zeros."""
    return b"".join(container(*images) + bytes(padding) for images in containers)


@dataclass(frozen=True)
class _Part:
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int


def library(
    path: Path,
    fatbin: bytes,
    *,
    name: str = ".nv_fatbin",
    more: Mapping[str, bytes] = {},
    machine: int = X86_64,
    kind: int = SHARED,
    alignment: int = 8,
) -> Path:
    """Write a shared library: text, `fatbin` and `more` in a first segment, data and bss in a second.

    `alignment` is what all sections ask for, in bytes; segments promise a page, or that if it is more.
    """
    page = max({X86_64: 0x1000, AARCH64: 0x10000}[machine], alignment)
    content = bytearray(64 + 3 * 56)
    parts = []
    for label, data in (
        (".text", b"\xc3" * 300),
        (name, fatbin),
        *more.items(),
        (".rodata", b"constant " * 99),
    ):
        content += bytes(-len(content) % 16)
        parts.append(_Part(label, 1, 2, len(content), len(content), len(data)))
        content += data
    text_end = len(content)
    content += bytes(-len(content) % 16)
    data_at, distance = len(content), 16 * page
    parts.append(_Part(".data", 1, 3, data_at + distance, data_at, 5000))
    content += bytes(range(250)) * 20
    parts.append(_Part(".bss", 8, 3, len(content) + distance, len(content), 9000))
    loads = [
        (1, 5, 0, 0, 0, text_end, text_end, page),
        (1, 6, data_at, data_at + distance, data_at + distance, 5000, 14000, page),
        (0x6474E551, 6, 0, 0, 0, 0, 0, 16),
    ]
    parts.append(_Part(".comment", 1, 0, 0, len(content), 40))
    content += b"not loaded, not to be lost either".ljust(40, b".")
    names = b"\0" + b"".join(part.name.encode() + b"\0" for part in parts) + b".shstrtab\0"
    parts.append(_Part(".shstrtab", 3, 0, 0, len(content), len(names)))
    content += names
    content += bytes(-len(content) % 8)
    table = len(content)
    content += bytes(64)
    for part in parts:
        at = names.index(part.name.encode() + b"\0")
        content += struct.pack(
            "<IIQQQQIIQQ", at, part.type, part.flags, part.address, part.offset, part.size, 0, 0, alignment, 0
        )
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    content[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident,
        kind,
        machine,
        1,
        0,
        64,
        table,
        0,
        64,
        56,
        3,
        64,
        len(parts) + 1,
        len(parts),
    )
    content[64 : 64 + 3 * 56] = b"".join(struct.pack("<IIQQQQQQ", *load) for load in loads)
    path.write_bytes(content)
    return path


def capabilities(*texts: str) -> list[Capability]:
    return [Capability.parse(text) for text in texts]


def cuobjdump() -> str:
    """The official reader; the test is skipped where the wheel with it is not installed."""
    found = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/cuobjdump"))
    if not found:
        pytest.skip("cuobjdump is not installed: pip install nvidia-cuda-cuobjdump")
    return str(found[0])


def listed(path: Path) -> list[str]:
    """The targets of all cubins and PTX, as cuobjdump lists them, sorted: `sm_90a`, `compute_80`."""
    words = []
    for option, prefix in (("--list-elf", "sm"), ("--list-ptx", "compute")):
        told = subprocess.run(
            [cuobjdump(), "--all-fatbin", option, str(path)], capture_output=True, text=True, check=False
        )
        for line in told.stdout.splitlines():
            words += [word.replace("sm_", f"{prefix}_") for word in line.split(".") if word.startswith("sm_")]
    return sorted(words)
