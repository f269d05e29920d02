"""Images stored in less room: the same code, never larger, and what is unknown as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Made, container, cubin, ptx

from vllm_variants.fatbin.codecs import LZ4, RAW, ZSTD, Encoding, encode, raw_payload
from vllm_variants.fatbin.container import Image, container_at
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.new_image import NewImage, header_without_storage, recompressed, with_payload


def first(*made: Made) -> tuple[Bytes, Image]:
    source = Bytes("a.so", container(*made))
    return source, container_at(source, 0, source.size).images[0]


@given(
    st.sampled_from(["sm_70", "sm_90a", "sm_100f", "compute_80"]),
    st.binary(max_size=3000) | st.builds(bytes, st.integers(0, 9000)),
    st.sampled_from([64, 80, 88, 112, 184]),
    st.sampled_from([(RAW,), (RAW, LZ4), (RAW, ZSTD), (RAW, LZ4, ZSTD)]),
)
def test_a_recompressed_image_is_the_same_code_and_never_larger(
    word: str, payload: bytes, header_size: int, allowed: tuple[Encoding, ...]
) -> None:
    source, image = first(Made(word, payload, header_size=max(header_size, 80 if word[0] == "c" else 64)))
    new = recompressed(source, image, allowed)

    assert new.size <= image.size
    if isinstance(new, NewImage):
        assert new.size < image.size and not new.compiled
        after = Bytes("new", new.data)
        got = replace(new.image, offset=0)
        assert raw_payload(after, got) == raw_payload(source, image)
        old = source.at(image.offset, image.header_size)
        assert header_without_storage(new.header) == header_without_storage(old)
        assert (got.target, got.kind, got.version) == (image.target, image.kind, image.version)


@pytest.mark.parametrize("before", [LZ4, ZSTD], ids=str)
def test_an_lz4_image_becomes_zstd_and_a_zstd_image_stays(before: Encoding) -> None:
    source, image = first(cubin("sm_90", 30_000))
    stored = with_payload(
        source.at(image.offset, image.header_size), encode(raw_payload(source, image), before), image
    )
    source, image = Bytes("b.so", stored.data), stored.image
    new = recompressed(source, image, (RAW, ZSTD))
    assert (new is image) == (before == ZSTD)
    assert (new.image if isinstance(new, NewImage) else new).compression == "zstd"


def test_what_is_unknown_stays() -> None:
    for made in (Made("sm_90", bytes(9000), code=64), Made("sm_90", bytes(9000), flags=1 << 30)):
        source, image = first(made)
        assert recompressed(source, image, (RAW, ZSTD)) is image


def test_options_and_more_in_a_header_stay() -> None:
    source, image = first(ptx("compute_80", 9000))
    new = recompressed(source, image, (RAW, ZSTD))
    assert isinstance(new, NewImage)
    assert new.header[0x40:] == source.at(image.offset, image.header_size)[0x40:]
