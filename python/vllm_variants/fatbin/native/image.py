"""The image of a cubin that was made here: the header that nvcc writes for it.

Until 9.0 the header has 64 bytes. From 10.0 on it has flag bit 24, and holds the bytes of the cubin's
section `.nv.compat` behind an empty string, where a PTX's header has its options. The format's
version is 1 and the cubin's ABI. Held against all 431 cubins in vLLM 0.13.0's `_C`, `_moe_C` and
`_vllm_fa2_C` (nvcc 12.9) and all 93 in a libcurand of CUDA 13: the same bytes.
"""

from __future__ import annotations

import struct

from vllm_variants.fatbin.codecs import Encoded
from vllm_variants.fatbin.container import IMAGE_HEADER, Flag, Image
from vllm_variants.fatbin.native.cubin import Cubin
from vllm_variants.fatbin.new_image import NewImage, with_payload
from vllm_variants.model.capability import Target

_KIND, _HEADER_VERSION = 2, 0x0101
_OPTIONS = struct.Struct("<II")  # the offset of what follows, and its length without the empty string
_SUFFIX_FLAGS = {"": 0, "a": int(Flag.ARCHITECTURE_SPECIFIC), "f": int(Flag.FAMILY_SPECIFIC)}


def cubin_image(cubin: Cubin, target: Target, stored: Encoded, stands_for: Image) -> NewImage:
    """The image of a cubin for `target`, with its payload `stored` in some encoding."""
    compat = cubin.compat if target.capability.major >= 10 else b""
    flags = Flag.BITS_64 | Flag.LINUX | stands_for.flags & Flag.DEBUG | _SUFFIX_FLAGS[target.suffix]
    if compat:
        flags |= Flag.BLACKWELL
    number = target.capability.major * 10 + target.capability.minor
    more = _options(compat) if compat else b""
    fields = (
        _KIND, _HEADER_VERSION, IMAGE_HEADER.size + len(more), 0, 0,
        IMAGE_HEADER.size if more else 0, cubin.abi, 1, number, 0, 0, int(flags), 0, 0,
    )  # fmt: skip
    return with_payload(IMAGE_HEADER.pack(*fields) + more, stored, stands_for)


def _options(content: bytes) -> bytes:
    start = IMAGE_HEADER.size + _OPTIONS.size
    whole = _OPTIONS.pack(start, len(content)) + b"\0" + content
    return whole.ljust(-(-len(whole) // 8) * 8, b"\0")
