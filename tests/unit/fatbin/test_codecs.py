"""Payloads of images: what is encoded comes back, and what lies is refused before it takes memory."""

from __future__ import annotations

import random
import struct

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.fatbin import codecs
from vllm_variants.fatbin.codecs import LZ4, RAW, ZSTD, Codec, Encoding, Undecodable
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.source import Malformed

ENCODINGS = [
    RAW,
    *(Encoding(Codec.LZ4, n) for n in (1, 9, 12)),
    *(Encoding(Codec.ZSTD, n) for n in (1, 9, 19)),
]
payloads = st.one_of(
    st.binary(max_size=5000),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=40), st.integers(1, 900)),
)


@given(payloads, st.sampled_from(ENCODINGS))
def test_what_is_encoded_comes_back_and_is_encoded_the_same_again(raw: bytes, encoding: Encoding) -> None:
    encoded = codecs.encode(raw, encoding)

    assert codecs.decode(encoded.data, encoded.codec, encoded.size) == raw
    assert codecs.encode(raw, encoding) == encoded


@given(payloads)
def test_the_smallest_is_never_larger_than_raw_and_takes_the_first_among_equals(raw: bytes) -> None:
    chosen = codecs.smallest(raw, (RAW, LZ4, ZSTD))

    sizes = [len(codecs.encode(raw, encoding).padded) for encoding in (RAW, LZ4, ZSTD)]
    assert len(chosen.padded) == min(sizes)
    assert chosen.encoding == (RAW, LZ4, ZSTD)[sizes.index(min(sizes))]


@given(payloads, st.sampled_from(ENCODINGS[1:]), st.integers(-50, 5000))
def test_another_size_than_the_header_says_is_refused(raw: bytes, encoding: Encoding, off: int) -> None:
    encoded = codecs.encode(raw, encoding)
    claimed = max(0, encoded.size + off)
    if claimed != encoded.size:
        with pytest.raises(Undecodable):
            codecs.decode(encoded.data, encoded.codec, claimed)


@given(st.binary(max_size=300), st.sampled_from([Codec.LZ4, Codec.ZSTD]), st.integers(0, 4000))
def test_garbage_is_one_error(data: bytes, codec: Codec, size: int) -> None:
    try:
        assert len(codecs.decode(data, codec, size)) == size
    except Undecodable as error:
        assert error.message


@given(payloads, st.sampled_from(ENCODINGS[1:]), st.randoms())
def test_what_is_cut_off_is_refused(raw: bytes, encoding: Encoding, chance: random.Random) -> None:
    encoded = codecs.encode(raw, encoding)
    cut = encoded.data[: chance.randrange(len(encoded.data))]
    with pytest.raises(Undecodable):
        codecs.decode(cut, encoded.codec, max(1, encoded.size))


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_a_hundred_gigabytes_are_refused_without_taking_them(codec: Codec) -> None:
    with pytest.raises(Undecodable, match="claims 100000000000 bytes"):
        codecs.decode(b"\0" * 64, codec, 100_000_000_000)


def test_a_size_that_lz4_could_never_make_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(Undecodable, match="more than 64 bytes of LZ4 can hold"):
        codecs.decode(b"\0" * 64, Codec.LZ4, codecs.LARGEST)


def test_a_zstd_frame_that_lies_with_its_header_is_refused() -> None:
    """The frame and the image's header both say 1 GB, and the frame has 10 bytes."""
    frame = bytearray(zstandard.ZstdCompressor().compress(b"0123456789" * 40_000_000)[:64])
    with pytest.raises(Undecodable, match="broken"):
        codecs.decode(bytes(frame), Codec.ZSTD, 400_000_000)


def test_zstd_is_one_frame_with_its_size_and_nothing_else() -> None:
    """As fatbinary writes it: content size, no checksum, no dictionary; and nothing may follow it."""
    encoded = codecs.encode(b"machine code " * 9000, ZSTD)
    frame = zstandard.get_frame_parameters(encoded.data)

    assert (frame.content_size, frame.has_checksum, frame.dict_id) == (encoded.size, False, 0)
    with pytest.raises(Undecodable):
        codecs.decode(encoded.data + b"more", Codec.ZSTD, encoded.size)


def test_lz4_is_a_bare_block() -> None:
    raw = b"machine code " * 9000
    encoded = codecs.encode(raw, LZ4)
    assert lz4.block.decompress(encoded.data, uncompressed_size=len(raw)) == raw


def test_the_identity_of_an_encoding_names_library_and_level() -> None:
    assert RAW.identity == "none"
    assert ZSTD.identity.startswith("zstd 1.")
    assert ZSTD.identity.endswith(" level 9 hash_log 19 search_log 3 min_match 6")
    assert LZ4.identity.startswith("lz4 1.") and LZ4.identity.endswith(" level 9")


def test_an_older_driver_gets_no_zstd() -> None:
    assert codecs.readable_by(525) == codecs.readable_by(549) == (RAW, LZ4)
    assert codecs.readable_by(550) == codecs.readable_by(580) == (RAW, ZSTD)


def image(payload: bytes, compressed: int, uncompressed: int, flags: int) -> Image:
    return Image(64, 64, len(payload), compressed, uncompressed, 2, (1, 7), 90, 0x11 | flags)


def test_the_payload_of_an_image_is_decompressed_and_checked() -> None:
    raw = b"machine code " * 100
    for encoding in ENCODINGS[1:]:
        stored = codecs.encode(raw, encoding)
        source = Bytes("lib.so", bytes(128) + stored.padded)
        good = image(stored.padded, len(stored.data), len(raw), stored.codec.flag)
        assert codecs.raw_payload(source, good) == raw

        lies = [
            image(stored.padded, len(stored.data), 100_000_000_000, stored.codec.flag),
            image(stored.padded, len(stored.padded) + 1, len(raw), stored.codec.flag),
            image(stored.padded, 4, len(raw), stored.codec.flag),
            image(stored.padded, len(stored.data), len(raw), codecs.COMPRESSION_FLAGS),
        ]
        for lie in lies:
            with pytest.raises(Malformed, match=r"lib\.so: the 9\.0 image cannot be decompressed: .*0x40"):
                codecs.raw_payload(source, lie)


def test_a_payload_that_is_not_compressed_is_as_it_is() -> None:
    source = Bytes("lib.so", bytes(128) + b"machine code....")
    assert codecs.raw_payload(source, image(b"machine code....", 0, 0, 0)) == b"machine code...."


def test_a_bomb_takes_no_memory() -> None:
    """100 GB of zeros in 3 MB of zstd: refused by the size alone."""
    block = struct.pack("<I", 1 << 1 | 131072 << 3)[:3] + b"\0"  # a run of 128 KiB
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 100_000_000_000) + block * 700_000
    with pytest.raises(Undecodable, match="claims"):
        codecs.decode(frame, Codec.ZSTD, 100_000_000_000)
    with pytest.raises(Undecodable, match="its zstd frame holds 100000000000 bytes"):
        codecs.decode(frame, Codec.ZSTD, 1000)
