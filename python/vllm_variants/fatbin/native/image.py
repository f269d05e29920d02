"""An image made here: the header that nvcc writes for a cubin, and the payload as stored.

Until 9.0 the header has 64 bytes. From 10.0 on it has flag bit 24, and holds the bytes of the cubin's
section `.nv.compat` behind an empty string, where a PTX's header has its options. The format's
version is 1 and the cubin's ABI. Held against all 431 cubins in vLLM 0.13.0's `_C`, `_moe_C` and
`_vllm_fa2_C` (nvcc 12.9) and all 93 in a libcurand of CUDA 13: the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vllm_variants.fatbin.codecs import Codec, Encoded
from vllm_variants.fatbin.container import IMAGE_HEADER, Flag, Image
from vllm_variants.fatbin.native.cubin import Cubin
from vllm_variants.model.capability import Target

_KIND, _HEADER_VERSION = 2, 0x0101
_OPTIONS = struct.Struct("<II")  # the offset of what follows, and its length without the empty string
_FLAGS_AT = 0x28
_SIZES = struct.Struct("<QI")  # at 0x08: payload size, compressed size
_UNCOMPRESSED_AT = 0x38
_SUFFIX_FLAGS = {"": 0, "a": int(Flag.ARCHITECTURE_SPECIFIC), "f": int(Flag.FAMILY_SPECIFIC)}


@dataclass(frozen=True)
class NewImage:
    """An image to be written: `image` describes it (its offset is 0), `data` is header and payload.

    `stands_for` is the image of the source that it replaces.
    """

    image: Image
    header: bytes
    payload: bytes
    stands_for: Image

    @property
    def size(self) -> int:
        """Of header and payload, in bytes."""
        return len(self.header) + len(self.payload)

    @property
    def data(self) -> bytes:
        return self.header + self.payload


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
    return _with_payload(IMAGE_HEADER.pack(*fields) + more, stored, stands_for)


def recompressed(header: bytes, stored: Encoded, stands_for: Image) -> NewImage:
    """The image `stands_for`, whose header is `header`, with its payload stored in another encoding."""
    return _with_payload(header, stored, stands_for)


def _options(content: bytes) -> bytes:
    start = IMAGE_HEADER.size + _OPTIONS.size
    whole = _OPTIONS.pack(start, len(content)) + b"\0" + content
    return whole.ljust(-(-len(whole) // 8) * 8, b"\0")


def _with_payload(header: bytes, stored: Encoded, stands_for: Image) -> NewImage:
    made, compressed, payload = bytearray(header), stored.codec is not Codec.NONE, stored.padded
    (flags,) = struct.unpack_from("<Q", made, _FLAGS_AT)
    flags = flags & ~(Flag.LZ4 | Flag.ZSTD) | stored.codec.flag
    _SIZES.pack_into(made, 0x08, len(payload), len(stored.data) if compressed else 0)
    struct.pack_into("<Q", made, _FLAGS_AT, flags)
    struct.pack_into("<Q", made, _UNCOMPRESSED_AT, stored.size if compressed else 0)
    fields = IMAGE_HEADER.unpack_from(made)
    code, _, size, payload_size, compressed_size, _, minor, major, architecture, _, _, _, _, raw = fields
    image = Image(0, size, payload_size, compressed_size, raw, code, (major, minor), architecture, int(flags))
    return NewImage(image, bytes(made), payload, stands_for)
