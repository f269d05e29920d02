"""What PTX says about itself: language version, target, kernels, and the options it is compiled with."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_variants.errors import InputError
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.source import Malformed, Source
from vllm_variants.model.capability import Target

_VERSION = re.compile(rb"^\s*\.version\s+(\d+)\.(\d+)", re.MULTILINE)
_TARGET = re.compile(rb"^\s*\.target\s+(sm_\d+[af]?)\b", re.MULTILINE)
_ENTRY = re.compile(rb"\.entry\s+([a-zA-Z][\w$]*|[_$%][\w$]+)")
_PARAMETERS = re.compile(rb"\s*\(([^)]*)\)")
_PARAMETER = re.compile(
    rb"\s*\.param\s+(?:\.align\s+\d+\s+)?\.[busf](8|16|32|64)\b"
    rb"(?:\s+\.ptr(?:\s+\.(?:const|global|local|shared))?(?:\s+\.align\s+\d+)?)?"
    rb"\s+[\w$%]+\s*(?:\[\s*(\d+)\s*\])?\s*"
)
_LINKAGE = re.compile(rb"\s*(?:\.(?:visible|weak|extern)\s+)*")
"""All that may stand between the end of a statement's line and `.entry`."""
_BLOCK_COMMENT = re.compile(rb"/\*.*?\*/", re.DOTALL)
_HEAD = 1 << 16
"""Bytes in which `.version` and `.target`, the first directives of every PTX, must be."""

_OPTIONS_AT = 0x14  # in an image's header: where its options' offset and length are
_FIELD = struct.Struct("<I")
_STRING = struct.Struct("<II")

# Options of ptxas that nvcc passes on, and stores in a PTX's header. Source: `ptxas --help` of 12.9.
_SILENT = {"-v", "--verbose", "-w", "--disable-warnings"}
"""They change what ptxas prints, and no byte of the cubin."""
_PLAIN = {
    "-g", "--device-debug", "-lineinfo", "--generate-line-info", "-disable-optimizer-consts",
    "--disable-optimizer-constants", "-opt-fp-atomics", "--optimize-float-atomics",
    "-O0", "-O1", "-O2", "-O3", "-O4",
}  # fmt: skip
_VALUED = {
    "--opt-level": r"[0-4]",
    "-fmad": "true|false", "--fmad": "true|false",
    "-maxrregcount": r"\d{1,3}|archmax|archmin", "--maxrregcount": r"\d{1,3}|archmax|archmin",
    "-allow-expensive-optimizations": "true|false", "--allow-expensive-optimizations": "true|false",
    "-regUsageLevel": r"\d|10", "--register-usage-level": r"\d|10",
    "-dlcm": "c[agsv]", "--def-load-cache": "c[agsv]",
    "-dscm": "wb|cg|cs|wt", "--def-store-cache": "wb|cg|cs|wt",
}  # fmt: skip


class UnknownOption(InputError):
    """The options in a PTX's header hold one whose meaning is not known here."""


@dataclass(frozen=True)
class Ptx:
    """A PTX module: its language version, target, and the names of its kernels.

    `parameters` has the bytes of each kernel's parameters, in their order, where all of them are numbers or
    arrays of numbers.
    """

    version: tuple[int, int]
    target: Target
    entries: frozenset[str]
    parameters: Mapping[str, tuple[int, ...]]


def parse(text: bytes) -> Ptx:
    """Read the directives of PTX text; raise `InputError` where it does not begin as PTX must.

    Source: PTX ISA, "PTX Module Directives" and "Kernel and Function Directives".
    """
    if b"/*" in text:
        text = _BLOCK_COMMENT.sub(b"", text)
    head = text[:_HEAD]
    version, target = _VERSION.search(head), _TARGET.search(head)
    if not version or not target:
        raise InputError("it is no PTX: the directives .version and .target are missing")
    kernels = {
        match[1].decode("ascii"): _parameters(text, match.end())
        for match in _ENTRY.finditer(text)
        if _begins_a_line(text, match.start())
    }
    parameters = {name: sizes for name, sizes in kernels.items() if sizes is not None}
    machine = Target.parse(target[1].decode("ascii"))
    return Ptx((int(version[1]), int(version[2])), machine, frozenset(kernels), parameters)


def _parameters(text: bytes, at: int) -> tuple[int, ...] | None:
    """The bytes of each parameter in the list that may stand at `at`; None where one is of another kind."""
    listed = _PARAMETERS.match(text, at)
    if not listed or not listed[1].strip():
        return ()
    found = [_PARAMETER.fullmatch(each) for each in listed[1].split(b",")]
    sizes = [int(each[1]) // 8 * int(each[2] or 1) for each in found if each]
    return tuple(sizes) if len(sizes) == len(found) else None


def _begins_a_line(text: bytes, at: int) -> bool:
    """Whether only linkage directives stand before `at` on its line: then it is no comment and no string."""
    line = text[text.rfind(b"\n", 0, at) + 1 : at]
    return bool(_LINKAGE.fullmatch(line))


def text_of(payload: bytes) -> bytes:
    """The text in a PTX image's decompressed payload: without the zeros that end and pad it."""
    return payload.rstrip(b"\0")


def stored_options(source: Source, image: Image) -> str:
    """The options string in an image's header, as nvcc stored it; raise `Malformed`.

    At +0x14 is the offset of two numbers, the string's offset and its length, all counted from the
    image's start.
    """
    header = source.at(image.offset, image.header_size)
    (at,) = _FIELD.unpack_from(header, _OPTIONS_AT)
    if not at:
        return ""
    if at + _STRING.size > len(header):
        raise Malformed(source.name, image.offset, "an image's options lie outside its header")
    start, length = _STRING.unpack_from(header, at)
    if start + length > len(header):
        raise Malformed(source.name, image.offset, "an image's options lie outside its header")
    return header[start : start + length].rstrip(b"\0").decode("utf-8", "replace").strip()


def compiler_options(stored: str) -> tuple[str, ...]:
    """What ptxas must be given for these stored options; raise `UnknownOption` for one not known.

    What only changes messages is left out.
    """
    words, options = stored.split(), []
    while words:
        word = words.pop(0)
        name, given, value = word.partition("=")
        if word in _SILENT:
            continue
        if word in _PLAIN:
            options.append(word)
            continue
        if name in _VALUED and not given and words:
            value = words.pop(0)
        if name not in _VALUED or not re.fullmatch(_VALUED[name], value):
            raise UnknownOption(f"it is to be compiled with the option {word!r}, which is not known here")
        options += [name, value]
    return tuple(options)
