"""Prove a container with new images against its source: both are read anew, nothing is believed.

What must hold: images of the source are the same bytes; each new image is what was to be written;
decompressed it is the image that it stands for, or a cubin for its target with exactly the kernels of
the PTX that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_variants.errors import InputError
from vllm_variants.fatbin import codecs
from vllm_variants.fatbin.container import Container, Image
from vllm_variants.fatbin.native import cubin as cubins
from vllm_variants.fatbin.native import ptx as ptxs
from vllm_variants.fatbin.new_image import NewImage, header_without_storage
from vllm_variants.fatbin.source import Source, same_bytes


def wrong(source: Source, expected: Sequence[Image | NewImage], new: Source, now: Container) -> str | None:
    """What is wrong with the container `now` of the new file, as a clause; None: it is as expected."""
    if len(now.images) != len(expected):
        return f"it has {len(now.images)} images, not {len(expected)}"
    for image, got in zip(expected, now.images, strict=True):
        if isinstance(image, NewImage):
            if reason := _wrong_new(source, image, new, got):
                return reason
        elif image.size != got.size or not same_bytes(source, image.offset, new, got.offset, got.size):
            return f"it has a changed {image.target} image"
    return None


def _wrong_new(source: Source, expected: NewImage, new: Source, got: Image) -> str | None:
    target = expected.image.target
    if got.size != expected.size or new.at(got.offset, got.size) != expected.data:
        return f"its new {target} image is not what was to be written"
    try:
        before, after = codecs.raw_payload(source, expected.stands_for), codecs.raw_payload(new, got)
        if expected.compiled:
            cubins.require(cubins.parse(after), ptxs.parse(ptxs.text_of(before)), got.target)
            return None
    except InputError as error:
        return f"its new {target} image is wrong: {error.message}"
    headers = [
        header_without_storage(file.at(image.offset, image.header_size))
        for file, image in ((source, expected.stands_for), (new, got))
    ]
    if before != after or headers[0] != headers[1]:
        return f"its {target} image is another once decompressed"
    return None
