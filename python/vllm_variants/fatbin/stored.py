"""Images as a slimmed copy of the same library holds them already: taken, and not compressed again.

Results for related devices share images: 9 of 10 bytes that sm86 keeps of a container may be those that
sm89 keeps. Nothing is believed: what is taken is a proposal, and the proof decompresses it and compares
it with the source, as it does what was compressed here. What does not hold there is compressed after all.

A copy is only asked when it was made with the same encoding (codec, version and level), so what is taken
is what would have been made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from vllm_variants.errors import InputError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.codecs import Codec, Encoded, Encoding
from vllm_variants.fatbin.container import Image, containers
from vllm_variants.fatbin.elf import Elf, Section
from vllm_variants.fatbin.new_image import header_without_storage
from vllm_variants.fatbin.rewrite import device_sections
from vllm_variants.fatbin.source import OpenFile, Source, opened

Place = tuple[int, int]
"""A container by the numbers of its section, of those with device code, and of itself in that: no slimming
changes them."""
_Found = tuple[OpenFile, Image]


class StoredImages:
    """The zstd images of slimmed copies of one library, by their container's place.

    A context manager: the copies stay open in it, so that one that is removed meanwhile does no harm. A copy
    that is not there or cannot be read has nothing to give.
    """

    def __init__(self, copies: Sequence[Path]) -> None:
        self._copies = copies
        self._open = ExitStack()
        self._images: dict[Place, list[_Found]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def take(self, source: Source, image: Image, place: Place, encoding: Encoding) -> Encoded | None:
        """The payload of `image`, of the container at `place`, in that encoding; None: no copy has it."""
        if encoding.codec is not Codec.ZSTD or not self._copies:
            return None
        if self._images is None:
            self._images = self._read()
        header = None
        for copy, other in self._images.get(place, ()):
            if (other.header_size, other.uncompressed_size) != (image.header_size, image.original_size):
                continue
            header = header or header_without_storage(source.at(image.offset, image.header_size))
            with suppress(InputError):
                if header_without_storage(copy.at(other.offset, other.header_size)) == header:
                    data = copy.at(other.offset + other.header_size, other.compressed_size)
                    return Encoded(encoding, data, image.original_size)
        return None

    def _read(self) -> dict[Place, list[_Found]]:
        images: dict[Place, list[_Found]] = {}
        for path in self._copies:
            with suppress(InputError, OSError):
                copy = self._open.enter_context(opened(path))
                for place, image in _zstd_images(copy, elfs.parse(copy)):
                    images.setdefault(place, []).append((copy, image))
        return images


def _zstd_images(copy: OpenFile, elf: Elf) -> Iterator[tuple[Place, Image]]:
    for number, section in enumerate(device_sections(elf)):
        yield from _in_section(copy, number, section)


def _in_section(copy: OpenFile, number: int, section: Section) -> Iterator[tuple[Place, Image]]:
    for ordinal, container in enumerate(containers(copy, section.offset, section.end)):
        for image in container.images:
            if image.known and image.compression == "zstd" and image.compressed_size <= image.payload_size:
                yield (number, ordinal), image
