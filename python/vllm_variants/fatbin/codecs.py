"""How an image's payload is stored: as it is, as an LZ4 block, or as a zstd frame.

LZ4 is one raw block without a frame or a size; zstd is one frame that states its size, without
checksum and dictionary, and nothing after it. Both are what nvcc and NVIDIA's libraries hold
(docs/fatbin.md). What encoding gives depends on nothing but the bytes, the level and the
library's version; `Encoding.identity` names all three, for a result's identity.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import lz4
import lz4.block
import zstandard

from vllm_variants.errors import InputError
from vllm_variants.fatbin.container import Flag, Image
from vllm_variants.fatbin.source import Malformed, Source

LARGEST = 1 << 30
"""Bytes of an image once decompressed: more is refused. The largest of any library seen is 66 MB."""
_LZ4_RATIO = 255
"""An LZ4 block cannot grow more: each further byte of a length stands for at most 255 bytes."""
ZSTD_DRIVER = 550
"""The first driver branch that reads zstd (CUDA 12.4). Source: NVIDIA's note for
`rapids_cuda_enable_fatbin_compression`."""


class Codec(StrEnum):
    """A way to store a payload."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"

    @property
    def flag(self) -> int:
        """The bit that says so in an image's header."""
        return {Codec.NONE: 0, Codec.LZ4: int(Flag.LZ4), Codec.ZSTD: int(Flag.ZSTD)}[self]


COMPRESSION_FLAGS = int(Flag.LZ4 | Flag.ZSTD)


class Undecodable(InputError):
    """A payload that is not what its header says."""


@dataclass(frozen=True)
class Encoding:
    """A codec and its level: 1–12 for LZ4 (high compression), 1–22 for zstd, 0 where there is none.

    `tuning` replaces some of zstd's parameters of that level, by their names in `zstd.h`.
    """

    codec: Codec
    level: int = 0
    tuning: tuple[tuple[str, int], ...] = ()

    @property
    def identity(self) -> str:
        """All that decides the bytes: `zstd 1.5.7 level 9 hash_log 19`, `lz4 1.9.4 level 9`, `none`."""
        if self.codec is Codec.NONE:
            return "none"
        zstd = ".".join(map(str, zstandard.ZSTD_VERSION))
        version = lz4.library_version_string() if self.codec is Codec.LZ4 else zstd
        return " ".join([f"{self.codec} {version} level {self.level}", *(f"{n} {v}" for n, v in self.tuning)])


RAW = Encoding(Codec.NONE)
LZ4 = Encoding(Codec.LZ4, 9)
ZSTD = Encoding(Codec.ZSTD, 9, (("hash_log", 19), ("search_log", 3), ("min_match", 6)))
"""Chosen by measurement (docs/slim.md): level 9 with a table that stays in a core's own cache."""


@dataclass(frozen=True)
class Encoded:
    """A payload as stored: `data` without padding, `size` once decompressed, both in bytes."""

    encoding: Encoding
    data: bytes
    size: int

    @property
    def codec(self) -> Codec:
        """How it is stored."""
        return self.encoding.codec

    @property
    def padded(self) -> bytes:
        """With zeros up to a multiple of 8 bytes, as images are aligned."""
        return self.data.ljust(-(-len(self.data) // 8) * 8, b"\0")


def codec_for(driver: int) -> Codec:
    """The codec that takes the least room of those that a driver branch (`525`, `560`) reads."""
    return Codec.ZSTD if driver >= ZSTD_DRIVER else Codec.LZ4


def requested_codec(name: str | None, driver: str) -> Codec:
    """The codec of that name; without one, what takes the least room of those that a driver (`560`) reads."""
    return Codec(name) if name else codec_for(int(driver.partition(".")[0]))


def readable_by(driver: int) -> tuple[Encoding, ...]:
    """The encodings that a driver branch (`525`, `560`) reads, and that are worth a try."""
    return (RAW, ZSTD if codec_for(driver) is Codec.ZSTD else LZ4)


def encode(raw: bytes, encoding: Encoding) -> Encoded:
    """Store `raw` in that encoding; the same bytes every time."""
    match encoding.codec:
        case Codec.NONE:
            data = raw
        case Codec.LZ4:
            data = lz4.block.compress(
                raw, mode="high_compression", compression=encoding.level, store_size=False
            )
        case Codec.ZSTD:
            data = _ZSTD_COMPRESSORS[encoding].compress(raw)
    return Encoded(encoding, data, len(raw))


class _Compressors(threading.local):
    """Zstandard compressors by encoding: their tables are large, and one serves one thread at a time."""

    def __init__(self) -> None:
        self._by_encoding: dict[Encoding, zstandard.ZstdCompressor] = {}

    def __getitem__(self, encoding: Encoding) -> zstandard.ZstdCompressor:
        if encoding not in self._by_encoding:
            frame = {"write_checksum": 0, "write_content_size": 1, "write_dict_id": 0}
            parameters = zstandard.ZstdCompressionParameters.from_level(
                encoding.level, **dict(encoding.tuning), **frame
            )
            self._by_encoding[encoding] = zstandard.ZstdCompressor(compression_params=parameters)
        return self._by_encoding[encoding]


_ZSTD_COMPRESSORS = _Compressors()


def smallest(raw: bytes, allowed: Collection[Encoding]) -> Encoded:
    """Store `raw` in the encoding that takes the least room once padded; among equals the first allowed."""
    return min((encode(raw, encoding) for encoding in allowed), key=lambda encoded: len(encoded.padded))


def decode(data: bytes, codec: Codec, size: int) -> bytes:
    """Decompress `data` to exactly `size` bytes; raise `Undecodable`.

    Takes no more memory than `size`, which is refused when it is over `LARGEST` or more than the
    codec could make of `data`.
    """
    if size > LARGEST:
        raise Undecodable(f"it claims {size} bytes decompressed; no image has more than {LARGEST}")
    match codec:
        case Codec.NONE:
            raw = data
        case Codec.LZ4:
            raw = _decode_lz4(data, size)
        case Codec.ZSTD:
            raw = _decode_zstd(data, size)
    if len(raw) != size:
        raise Undecodable(f"it has {len(raw)} bytes decompressed, and its header says {size}")
    return raw


def _decode_lz4(data: bytes, size: int) -> bytes:
    if size > _LZ4_RATIO * len(data):
        raise Undecodable(f"it claims {size} bytes decompressed, more than {len(data)} bytes of LZ4 can hold")
    try:
        return bytes(lz4.block.decompress(data, uncompressed_size=size))
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise Undecodable(f"its LZ4 block is broken ({error})") from error


def _decode_zstd(data: bytes, size: int) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != size:
            raise Undecodable(f"its zstd frame holds {frame.content_size} bytes, and its header says {size}")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Undecodable(f"its zstd frame is broken ({error})") from error


def raw_payload(source: Source, image: Image) -> bytes:
    """An image's payload as the driver sees it, decompressed; raise `Malformed`, naming the file.

    The sizes in its header must agree with each other and with what is there.
    """
    try:
        codec = _codec(image)
        at = image.offset + image.header_size
        if codec is Codec.NONE:
            return source.at(at, image.payload_size)
        if not image.payload_size - 8 < image.compressed_size <= image.payload_size:
            raise Undecodable(
                f"it claims {image.compressed_size} bytes compressed in a payload of {image.payload_size}"
            )
        return decode(source.at(at, image.compressed_size), codec, image.uncompressed_size)
    except Undecodable as error:
        what = f"the {image.target} image cannot be decompressed: {error.message}"
        raise Malformed(source.name, image.offset, what) from error


def _codec(image: Image) -> Codec:
    """The codec that an image's flags name; raise `Undecodable` where they name two."""
    named = [codec for codec in (Codec.LZ4, Codec.ZSTD) if image.flags & codec.flag]
    if len(named) > 1:
        raise Undecodable("its header says LZ4 and zstd at once")
    return named[0] if named else Codec.NONE
