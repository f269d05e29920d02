"""Images that are not in the source as they will be in the new file: made, or stored in another way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from vllm_variants.fatbin import codecs
from vllm_variants.fatbin.codecs import Codec, Encoded, Encoding
from vllm_variants.fatbin.container import IMAGE_HEADER, Flag, Image
from vllm_variants.fatbin.source import Source

_FLAGS_AT = 0x28
_SIZES = struct.Struct("<QI")  # at 0x08: payload size, compressed size
_UNCOMPRESSED_AT = 0x38


@dataclass(frozen=True)
class NewImage:
    """An image to be written: `image` describes it (its offset is 0), `data` is header and payload.

    `stands_for` is the image of the source whose place it takes: the same code stored in another
    way, or the PTX that it was compiled from. `shared`: the payload is one that another file had already.
    """

    image: Image
    header: bytes
    payload: bytes
    stands_for: Image
    shared: bool = False

    @property
    def size(self) -> int:
        """Of header and payload, in bytes."""
        return len(self.header) + len(self.payload)

    @property
    def data(self) -> bytes:
        """Header and payload, as they will stand in the file."""
        return self.header + self.payload

    @property
    def compiled(self) -> bool:
        """Whether it was compiled from the image it stands for."""
        return self.image.code != self.stands_for.code


def with_payload(header: bytes, stored: Encoded, stands_for: Image) -> NewImage:
    """An image of this header and payload; sizes and compression in the header become the payload's."""
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


def recompressed(
    source: Source,
    image: Image,
    allowed: Collection[Encoding],
    known: Callable[[Image], Encoded | None] = lambda image: None,
) -> Image | NewImage:
    """An image stored in the smallest of the encodings; itself where none is smaller.

    An image that is zstd already, or of an unknown kind or flag, stays as it is. `known` may have the
    smallest payload already. Raises `Malformed`.
    """
    if not image.known or image.compression == "zstd":
        return image
    shared = known(image)
    stored = shared or codecs.smallest(codecs.raw_payload(source, image), allowed)
    if len(stored.padded) >= image.payload_size:
        return image
    made = with_payload(source.at(image.offset, image.header_size), stored, image)
    return replace(made, shared=shared is not None)


def header_without_storage(header: bytes) -> bytes:
    """A header with all that `with_payload` sets blank: two of the same code are then equal."""
    made = bytearray(header)
    (flags,) = struct.unpack_from("<Q", made, _FLAGS_AT)
    _SIZES.pack_into(made, 0x08, 0, 0)
    struct.pack_into("<Q", made, _FLAGS_AT, flags & ~(Flag.LZ4 | Flag.ZSTD))
    struct.pack_into("<Q", made, _UNCOMPRESSED_AT, 0)
    return bytes(made)
