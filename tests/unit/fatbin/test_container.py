"""Reading fat binaries: everything that was written is read, and nothing broken is believed."""

from __future__ import annotations

import errno
import lzma
import os
import resource
import socket
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Made, container, cubin, library, ptx, section

from vllm_variants.errors import ExitCode, InputError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import source as source_module
from vllm_variants.fatbin.container import Container, containers, scattered_containers
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import Malformed, WheelMember, find_all, next_nonzero, opened
from vllm_variants.model.capability import Kind


class Memory:
    """A source in memory, as strict as a file."""

    def __init__(self, data: bytes, name: str = "made.so") -> None:
        self.data, self.name, self.size = data, name, len(data)

    def at(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Malformed(self.name, offset, "outside")
        return self.data[offset : offset + length]


def read(data: bytes) -> list[Container]:
    return list(containers(Memory(data), 0, len(data)))


WORDS = (
    "sm_52 sm_70 sm_75 sm_80 sm_86 sm_89 sm_90 sm_90a sm_100f sm_120a "  # cubins
    "compute_80 compute_90a"
)
words = st.sampled_from(WORDS.split())
made = st.builds(
    Made,
    words,
    st.binary(max_size=300),
    header_size=st.sampled_from([64, 72, 80, 88, 96, 104, 112, 176, 184]),
    flags=st.sampled_from([0, 0x2, 0x2000, 0x8000, 1 << 24]),
)
many = st.lists(st.lists(made, max_size=4), max_size=5)


@given(many, st.integers(0, 40))
def test_what_was_written_is_read(written: list[list[Made]], padding: int) -> None:
    found = read(section(*written, padding=padding * 8))

    assert len(found) == len(written)
    for got, images in zip(found, written, strict=True):
        assert [(i.kind, i.target, i.header_size, i.size) for i in got.images] == [
            (w.kind, w.target, w.header_size, len(w.data)) for w in images
        ]


@given(many)
def test_payloads_lie_where_the_headers_say(written: list[list[Made]]) -> None:
    data = section(*written)

    for got, images in zip(read(data), written, strict=True):
        for image, wanted in zip(got.images, images, strict=True):
            start = image.offset + image.header_size
            assert data[start : start + image.payload_size].rstrip(b"\0") == wanted.payload.rstrip(b"\0")


@given(many, st.data())
def test_a_damaged_section_is_read_or_refused_with_its_place(
    written: list[list[Made]], data: st.DataObject
) -> None:
    damaged = bytearray(section(*written, [cubin("sm_90")]))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]

    try:
        found = read(bytes(damaged))
    except Malformed as error:
        assert error.message.startswith("made.so: ")
        assert error.message.endswith(f"at offset {error.offset:#x}")
    else:
        ends = [0, *(c.end for c in found)]
        assert all(c.offset >= end for c, end in zip(found, ends, strict=False))
        assert all(c.offset <= i.offset and i.offset + i.size <= c.end for c in found for i in c.images)


def patched(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    def patch(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, offset, value)
        return bytes(changed)

    return patch


@pytest.mark.parametrize(
    ("damage", "what", "where"),
    [
        (patched(0, "<I", 0x12345678), "no fat binary where one must be", 0),
        (patched(4, "<H", 2), "of version 2", 0),
        (patched(6, "<H", 8), "a fat binary's header of 8 bytes", 0),
        (patched(8, "<Q", 1 << 40), "a fat binary of", 0),
        (patched(8, "<Q", (1 << 64) - 1), "a fat binary of", 0),  # would point before itself
        (patched(16 + 4, "<I", 0), "an image's header of 0 bytes", 16),  # would never end
        (patched(16 + 4, "<I", 63), "an image's header of 63 bytes", 16),
        (patched(16 + 4, "<I", 1 << 31), "an image's header of 2147483648 bytes", 16),
        (patched(16 + 8, "<Q", (1 << 64) - 64), "an image of", 16),
        (patched(16 + 8, "<Q", 1 << 20), "an image of", 16),
        (lambda data: data[:10], "a fat binary's header is cut off", 0),
        (lambda data: data[:60], "a fat binary of", 0),
        (lambda data: container()[:8] + struct.pack("<Q", 40) + b"\x01" * 40, "in the last 40 bytes", 16),
    ],
)
def test_lies_are_named_with_file_and_offset(damage: Callable[[bytes], bytes], what: str, where: int) -> None:
    with pytest.raises(Malformed, match=what) as caught:
        read(damage(section([cubin("sm_90", 500)])))

    assert caught.value.offset == where
    assert str(caught.value).startswith("made.so: ")


def test_unknown_kinds_and_flags_are_read_and_known_to_be_unknown() -> None:
    images = [Made("sm_90", b"lto", code=8), Made("sm_90", b"new", flags=1 << 30), cubin("sm_90")]

    (found,) = read(section(images))

    assert [image.known for image in found.images] == [False, False, True]
    assert [image.kind for image in found.images] == [None, Kind.CUBIN, Kind.CUBIN]


def test_an_sm_that_cannot_be_makes_an_image_unknown() -> None:
    data = bytearray(section([cubin("sm_90")]))
    struct.pack_into("<I", data, 16 + 0x1C, 1_000_000)  # found by fuzzing

    ((image,),) = (found.images for found in read(bytes(data)))

    assert not image.known


@given(many, st.binary(max_size=50))
def test_containers_among_other_data_are_found(written: list[list[Made]], between: bytes) -> None:
    between = between.replace(b"\x50", b"\x51")  # no magic of its own
    data = between.join([b"", *(container(*images) for images in written), b""])

    found = list(scattered_containers(Memory(data), 0, len(data)))

    assert [c.size for c in found] == [len(container(*images)) for images in written]


def test_what_only_looks_like_a_container_is_passed() -> None:
    magic = struct.pack("<I", 0xBA55ED50)
    data = magic * 5 + b"text" + container(cubin("sm_80")) + magic

    assert [c.offset for c in scattered_containers(Memory(data), 0, len(data))] == [24]


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=3))
def test_every_occurrence_is_found(data: bytes, pattern: bytes) -> None:
    expected = [i for i in range(len(data)) if data.startswith(pattern, i)]

    assert list(find_all(Memory(data), pattern, 0, len(data))) == expected


@given(st.integers(0, 5000), st.integers(0, 100))
def test_zeros_are_skipped(zeros: int, more: int) -> None:
    data = bytes(zeros) + b"x" * more

    assert next_nonzero(Memory(data), 0, len(data)) == zeros


def test_a_wheel_is_read_as_the_file_in_it(tmp_path: Path) -> None:
    fatbin = section(
        *[[cubin("sm_80", 40_000), cubin("sm_90a", 9_000), ptx("compute_80", 20_000)]] * 9, padding=70_000
    )
    made = library(tmp_path / "made.so", fatbin)
    with zipfile.ZipFile(tmp_path / "made.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.write(made, "package/made.so")

    with (
        opened(made) as file,
        zipfile.ZipFile(tmp_path / "made.whl") as wheel,
        closing(WheelMember(wheel, wheel.getinfo("package/made.so"))) as member,
    ):
        expected, found = (
            [c for s in device_sections(elfs.parse(source)) for c in containers_in(source, s)]
            for source in (file, member)
        )
        assert member.name.endswith("made.whl!package/made.so")

    assert found == expected
    assert len(found) == 9


def test_a_broken_wheel_names_wheel_and_member(tmp_path: Path) -> None:
    path = tmp_path / "broken.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a.so", b"\x7fELF" + bytes(range(256)) * 400)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)

    with (
        zipfile.ZipFile(path) as wheel,
        pytest.raises(Malformed, match=r"broken\.whl!a\.so"),
        closing(WheelMember(wheel, wheel.getinfo("a.so"))) as member,
    ):
        member.at(100_000, 100)


@pytest.mark.parametrize("cut", [0, 3, 30, 63, 64, 100, 5000])
def test_a_truncated_library_is_refused(tmp_path: Path, cut: int) -> None:
    made = library(tmp_path / "made.so", section([cubin("sm_90", 9000)]))
    made.write_bytes(made.read_bytes()[:cut])

    with opened(made) as source:
        if elfs.is_elf64(source):
            with pytest.raises(Malformed, match=r"made\.so: .* at offset 0x"):
                elfs.parse(source)
        else:
            assert cut < 64


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (fifo, "a FIFO"),
        (listener, "a socket"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_only_regular_files_are_opened_and_nothing_waits(
    tmp_path: Path, make: Callable[[Path], object], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(Path("odd"))

    with pytest.raises(InputError, match=f"odd is {what}, not a regular file") as caught, opened(Path("odd")):
        pass

    assert caught.value.exit_code is ExitCode.USAGE


def test_a_file_that_is_shortened_while_it_is_read_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "made.so"
    path.write_bytes(bytes(200_000))

    with opened(path) as source:
        os.truncate(path, 5000)
        assert source.at(4000, 1000) == bytes(1000)
        for length in (8, 100_000):
            with pytest.raises(Malformed, match=rf"made\.so: {length} bytes are missing"):
                source.at(100_000, length)


def test_a_disk_that_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    path = library(tmp_path / "made.so", section([cubin("sm_90")]))
    monkeypatch.setattr(os, "pread", fail)

    with opened(path) as source, pytest.raises(Malformed, match=r"made\.so: cannot be read \(Input/output"):
        elfs.parse(source)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (60, "<H", 0),  # the number of sections is in section 0: see below
        (56, "<H", 0xFFFF),  # and that of the segments
        (None, "<Q", 99 << 30),  # the size of the sections' names
    ],
)
def test_absurd_counts_in_a_huge_sparse_file_are_refused_in_little_memory(
    tmp_path: Path, offset: int | None, form: str, value: int
) -> None:
    path = library(tmp_path / "made.so", section([cubin("sm_90")]))
    table, names = struct.unpack_from("<Q", path.read_bytes(), 40)[0], path.read_bytes()[62]
    with path.open("r+b") as file:
        file.seek(table + 32)
        file.write(struct.pack("<QII", 1 << 29, 0, 1 << 31))  # of section 0: size, link, info
        file.seek(offset if offset is not None else table + 64 * names + 32)
        file.write(struct.pack(form, value))
    os.truncate(path, 100 << 30)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limit[1]))
    try:
        with opened(path) as source, pytest.raises(Malformed, match=r"headers|names"):
            elfs.parse(source)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_a_sections_name_is_not_longer_than_names_are(tmp_path: Path) -> None:
    """Many sections whose names are the same megabytes would fill memory."""
    path = library(tmp_path / "made.so", section([cubin("sm_90")]), name="." + "n" * 100_000)

    with opened(path) as source:
        assert max(len(s.name) for s in elfs.parse(source).sections) <= 256


def damaged(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        file.write(data)


@pytest.mark.parametrize(
    ("method", "at", "data"),
    [
        (zipfile.ZIP_DEFLATED, 200, bytes(60)),
        (zipfile.ZIP_LZMA, 60, b"\xff" * 60),
        (zipfile.ZIP_BZIP2, 60, b"\xff" * 60),
        (zipfile.ZIP_DEFLATED, 8, struct.pack("<H", 99)),  # of the member's own header: unknown method
        (zipfile.ZIP_DEFLATED, 6, struct.pack("<H", 1)),  # and encrypted
    ],
)
def test_a_member_that_cannot_be_read_is_malformed(tmp_path: Path, method: int, at: int, data: bytes) -> None:
    path = tmp_path / "odd.whl"
    with zipfile.ZipFile(path, "w", method) as wheel:
        wheel.writestr("a.so", b"\x7fELF" + os.urandom(100_000))
    damaged(path, at, data)
    if at in (6, 8):  # the directory at the end says the same
        directory = path.read_bytes().rindex(b"PK\x01\x02")
        damaged(path, directory + at + 2, data)

    with (
        zipfile.ZipFile(path) as wheel,
        pytest.raises(Malformed, match=r"odd\.whl!a\.so: cannot be"),
        closing(WheelMember(wheel, wheel.getinfo("a.so"))) as member,
    ):
        member.at(90_000, 10_000)


def test_an_lzma_error_is_what_the_library_raises() -> None:
    assert source_module.LZMAError is lzma.LZMAError


def test_an_lzma_member_does_not_decide_how_much_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as wheel:
        wheel.writestr("x.so", b"\x7fELF" + bytes(5000))
    data = bytearray(path.read_bytes())
    start = 30 + len("x.so")  # of the data: LZMA's version and length of properties, a byte, the dictionary
    with zipfile.ZipFile(path) as wheel, closing(WheelMember(wheel, wheel.infolist()[0])) as member:
        assert member.at(0, 4) == b"\x7fELF"
    data[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as wheel, pytest.raises(Malformed, match="dictionary of 4294967295 bytes"):
        WheelMember(wheel, wheel.infolist()[0])
