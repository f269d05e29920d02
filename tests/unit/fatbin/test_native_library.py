"""Whole libraries: which containers change, what they hold then, what is left and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from compiling import ptx_image, ptx_text
from making import Made, capabilities, container, cubin, library, listed, section

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.codecs import LZ4, RAW, ZSTD, Encoding, encode, raw_payload
from vllm_variants.fatbin.container import Container, Image, container_at
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.native import cubin as cubins
from vllm_variants.fatbin.native import proof
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.native.library import (
    Images,
    LibraryPlan,
    NativeLibrary,
    compile_libraries,
    plan_library,
)
from vllm_variants.fatbin.native.queue import Limits, Progress
from vllm_variants.fatbin.new_image import NewImage, with_payload
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.stub import is_stub

TEXT = ptx_text("scale", "shift")
ROOM = 9000  # bytes of a foreign cubin that the new ones may take


@dataclass
class Native:
    """Compiles libraries made by hand for devices, with a cache of its own."""

    compiler: Compiler
    folder: Path

    def __call__(
        self,
        path: Path,
        *devices: str,
        allowed: Sequence[Encoding] = (RAW, ZSTD),
        keep_ptx: bool = False,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> NativeLibrary:
        (made,) = self.of(
            plan_library(path, capabilities(*devices), path.name),
            allowed=allowed,
            keep_ptx=keep_ptx,
            progress=progress,
        )
        return made

    def of(
        self,
        plan: LibraryPlan,
        *,
        allowed: Sequence[Encoding] = (RAW, ZSTD),
        keep_ptx: bool = False,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[NativeLibrary]:
        cache, limits = Cache(self.folder / "cubins"), Limits(2, lambda: 10**12)
        how = {"allowed": allowed, "keep_ptx": keep_ptx, "progress": progress}
        return list(compile_libraries([plan], self.compiler, cache, limits, **how))  # type: ignore[arg-type]


@pytest.fixture
def native(compiler: Compiler, tmp_path: Path) -> Native:
    return Native(compiler, tmp_path)


def words(images: Images) -> list[str]:
    return [
        f"{'compute' if image.kind == 'ptx' else 'sm'}_{image.target.sm[3:]}"
        for image in map(described, images)
    ]


def described(image: Image | NewImage) -> Image:
    return image.image if isinstance(image, NewImage) else image


def written(path: Path, images: Images) -> bytes:
    """The bytes of a container that holds these images."""
    with opened(path) as source:
        return container(
            *(
                _Bare(
                    "sm_90",
                    image.data if isinstance(image, NewImage) else source.at(image.offset, image.size),
                )
                for image in images
            )
        )


class _Bare(Made):
    """Bytes that are an image already."""

    @property
    def data(self) -> bytes:
        return self.payload


def only(path: Path) -> Container:
    with opened(path) as source:
        (found,) = [c for s in device_sections(elfs.parse(source)) for c in containers_in(source, s)]
        return found


def test_ptx_that_the_device_would_compile_becomes_a_cubin_of_its_sm(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), ptx_image(TEXT)]))
    made = native(path, "9.0")

    (images,) = made.containers.values()
    assert words(images) == ["sm_90"]
    (row,) = made.cubins
    assert (row.ptx, row.target, row.kernels, row.cached) == ("8.0", "9.0", 2, False)
    assert made.left == ()
    new = library(tmp_path / "new.so", written(path, images))
    assert listed(new) == ["sm_90"]
    with opened(path) as source, opened(new) as after:
        assert proof.wrong(source, images, after, only(new)) is None


def test_a_device_with_machine_code_has_nothing_to_compile(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), ptx_image(TEXT)]))
    for device in ("8.0", "8.6", "8.9", "7.5"):
        made = native(path, device)
        assert (made.containers, made.cubins, made.left) == ({}, (), ())


def test_several_devices_each_get_their_own(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_70", 4 * ROOM), cubin("sm_80"), ptx_image(TEXT)]))
    made = native(path, "8.0", "9.0", "12.0")
    (images,) = made.containers.values()
    assert words(images) == ["sm_80", "sm_90", "sm_120"]
    new = library(tmp_path / "new.so", written(path, images))
    assert listed(new) == ["sm_120", "sm_80", "sm_90"]


def test_ptx_of_one_architecture_stays_code_of_that_architecture(native: Native, tmp_path: Path) -> None:
    text = ptx_text(target="sm_90a")
    image = ptx_image(text, word="compute_90a")
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), image]))
    (images,) = native(path, "9.0").containers.values()
    assert words(images) == ["sm_90a"]
    assert native(path, "12.0").containers == {}  # it never ran there


def test_the_ptx_stays_beside_the_cubin_when_that_is_asked(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), ptx_image(TEXT)]))
    (images,) = native(path, "9.0", keep_ptx=True).containers.values()
    assert words(images) == ["sm_90", "compute_80"]
    new = library(tmp_path / "new.so", written(path, images))
    assert listed(new) == ["compute_80", "sm_90"]


def test_what_does_not_fit_stays_ptx_and_is_reported(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([ptx_image(TEXT)]))
    made = native(path, "9.0", allowed=[RAW])
    assert made.containers == {}
    assert made.cubins == ()
    (left,) = made.left
    assert "does not fit in the container's room" in left.reason and "bytes too many" in left.reason
    assert (left.offset, str(left.device), str(left.ptx)) == (only(path).offset, "9.0", "8.0")


def test_of_several_devices_as_many_as_fit_and_the_ptx_for_the_rest(native: Native, tmp_path: Path) -> None:
    """A cubin for 12.0 is the larger one: it goes, and the PTX stays for 12.0."""
    path = library(tmp_path / "a.so", section([cubin("sm_70", 5000), ptx_image(TEXT)]))
    made = native(path, "9.0", "12.0", allowed=[RAW])
    (images,) = made.containers.values()
    assert words(images) == ["sm_90", "compute_80"]
    assert [str(left.device) for left in made.left] == ["12.0"]
    assert [str(row.device) for row in made.cubins] == ["9.0"]
    assert sum(image.size for image in images) <= only(path).size - 16


def test_images_that_stay_give_room_where_it_is_needed(native: Native, tmp_path: Path) -> None:
    """The 8.0 image stays for 8.0; stored as zstd it leaves room for the cubins of 9.0 and 12.0."""
    path = library(tmp_path / "a.so", section([cubin("sm_80", 4 * ROOM), ptx_image(TEXT)]))
    (images,) = native(path, "8.0", "9.0", "12.0").containers.values()
    assert words(images) == ["sm_80", "sm_90", "sm_120"]
    assert [described(image).compression for image in images] == ["zstd"] * 3
    new = library(tmp_path / "new.so", written(path, images))
    assert listed(new) == ["sm_120", "sm_80", "sm_90"]
    with opened(path) as source, opened(new) as after:
        assert proof.wrong(source, images, after, only(new)) is None


@pytest.mark.parametrize(("allowed", "stored"), [([RAW], "none"), ([RAW, LZ4], "lz4"), ([RAW, ZSTD], "zstd")])
def test_the_smallest_encoding_that_the_driver_reads_is_taken(
    native: Native, tmp_path: Path, allowed: list[Encoding], stored: str
) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), ptx_image(TEXT)]))
    (images,) = native(path, "9.0", allowed=allowed).containers.values()
    assert [described(image).compression for image in images] == [stored]
    assert native(path, "9.0", allowed=allowed).containers == {only(path).offset: images}  # from the cache


def test_compressed_ptx_is_read(native: Native, tmp_path: Path) -> None:
    made = ptx_image(TEXT)
    for encoding in (LZ4, ZSTD):
        source = Bytes("a", container(made))
        image = container_at(source, 0, source.size).images[0]
        stored = encode(raw_payload(source, image), encoding)
        new = with_payload(source.at(image.offset, image.header_size), stored, image)
        path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), _Bare("compute_80", new.data)]))
        assert only(path).images[1].compression == str(encoding.codec)
        assert len(native(path, "9.0").containers) == 1


def test_options_in_the_header_are_part_of_what_is_compiled(native: Native, tmp_path: Path) -> None:
    plain, without = (
        library(tmp_path / f"{number}.so", section([cubin("sm_80", ROOM), ptx_image(TEXT, options=options)]))
        for number, options in enumerate(("-v  ", "-O0 "))
    )
    (first,), (second,) = (native(path, "9.0").containers.values() for path in (plain, without))
    assert isinstance(first[0], NewImage) and isinstance(second[0], NewImage)
    assert first[0].data != second[0].data


def test_what_cannot_be_compiled_is_left_and_the_reason_said(native: Native, tmp_path: Path) -> None:
    foreign = cubin("sm_70", ROOM)
    path = library(
        tmp_path / "a.so",
        section(
            [foreign, ptx_image(TEXT, options="--new-thing")],
            [foreign, ptx_image(TEXT), ptx_image(TEXT)],
            [foreign, ptx_image(ptx_text(target="sm_75"))],
            [foreign, ptx_image(b"garbage")],
            [foreign, ptx_image(TEXT)],
        ),
    )
    made = native(path, "9.0")
    reasons = [left.reason for left in made.left]
    assert "the option '--new-thing', which is not known here" in reasons[0]
    assert reasons[1] == "it holds 2 PTX images for 8.0: which one runs is not known"
    assert reasons[2] == "its header says 8.0, and its text 7.5"
    assert reasons[3].startswith("it is no PTX")
    assert len(made.containers) == 1
    assert made.as_dict()["left"][0]["ptx"] == "8.0"


def test_code_to_be_linked_is_left(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([ptx_image(TEXT)]), name="__nv_relfatbin")
    (left,) = native(path, "9.0").left
    assert "code to be linked" in left.reason


def test_unknown_images_stay(native: Native, tmp_path: Path) -> None:
    unknown = Made("sm_90", b"something new...", code=64)
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), unknown, ptx_image(TEXT)]))
    (images,) = native(path, "9.0").containers.values()
    assert [described(image).code for image in images] == [64, 2]


def test_a_stub_is_not_compiled(native: Native, tmp_path: Path) -> None:
    """What an earlier slimming left where nothing could run has nothing to compile."""
    path = library(tmp_path / "a.so", section([ptx_image(ptx_text(comment="x" * 200_000))]))
    slim_file(path, capabilities("7.5"))
    with opened(path) as source:
        assert is_stub(source, only(path).images[0])
    made = native(path, "9.0")
    assert (made.containers, made.left) == ({}, ())


def test_what_is_no_library_has_nothing_to_compile(native: Native, tmp_path: Path) -> None:
    path = tmp_path / "a.so"
    path.write_bytes(b"not an ELF file")
    assert native(path, "9.0").containers == {}


def test_libraries_are_given_as_each_is_done_and_share_the_compiler(
    compiler: Compiler, tmp_path: Path
) -> None:
    paths = [
        library(tmp_path / f"{name}.so", section([cubin("sm_80", ROOM), ptx_image(text)]))
        for name, text in (("none", TEXT), ("a", ptx_text("a")), ("b", TEXT))
    ]
    plans = [plan_library(paths[0], capabilities("8.0"))]
    plans += [plan_library(path, capabilities("9.0")) for path in paths[1:]]
    limits = Limits(2, lambda: 10**12)
    made = list(compile_libraries(plans, compiler, Cache(tmp_path / "c"), limits, allowed=(RAW, ZSTD)))
    assert made[0].plan.path == paths[0]
    assert {one.plan.path for one in made} == set(paths)


def test_a_library_that_is_removed_meanwhile_stops_nobody(native: Native, tmp_path: Path) -> None:
    crowded = section([cubin("sm_70", 200), cubin("sm_80", 900), ptx_image(ptx_text(), word="compute_80")])
    path = library(tmp_path / "a.so", crowded)
    plan = plan_library(path, capabilities("9.0"))
    path.unlink()
    (made,) = native.of(plan)
    assert [left.reason for left in made.left] == [
        "its library cannot be read any more (No such file or directory)"
    ]
    library(path, crowded)
    made = native(path, "9.0", allowed=[RAW], progress=lambda progress: path.unlink(missing_ok=True))
    assert "does not fit" in made.left[0].reason


def test_the_proof_finds_what_is_wrong(native: Native, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_70", ROOM), cubin("sm_80"), ptx_image(TEXT)]))
    (images,) = native(path, "8.0", "9.0", allowed=[RAW]).containers.values()
    other = library(
        tmp_path / "b.so", section([cubin("sm_70", ROOM), cubin("sm_80"), ptx_image(ptx_text("other"))])
    )
    (others,) = native(other, "8.0", "9.0", allowed=[RAW]).containers.values()
    good = written(path, images)
    kept = described(images[0])

    def verdict(data: bytes, expected: Images = images) -> str | None:
        new = Bytes("new", data)
        with opened(path) as source:
            return proof.wrong(source, expected, new, container_at(new, 0, new.size))

    assert verdict(good) is None
    damaged = bytearray(good)
    damaged[16 + kept.header_size + 100] ^= 1
    assert verdict(bytes(damaged)) == "it has a changed 8.0 image"
    damaged = bytearray(good)
    damaged[16 + kept.size + 64 + 100] ^= 1
    assert verdict(bytes(damaged)) == "its new 9.0 image is not what was to be written"
    assert verdict(written(path, images[:1])) == "it has 1 images, not 2"
    lie = others[1]
    assert isinstance(lie, NewImage) and isinstance(images[1], NewImage)
    swapped = (images[0], NewImage(lie.image, lie.header, lie.payload, images[1].stands_for))
    assert "lacks 2 of 2 kernels" in (verdict(written(path, swapped), swapped) or "")
    assert not isinstance(images[0], NewImage)
    with opened(path) as source:
        header = source.at(images[0].offset, images[0].header_size)
        raw = raw_payload(source, images[0])
    for change, reason in (
        ((header, raw), None),
        ((header, raw[:-1] + b"x"), "its 8.0 image is another once decompressed"),
        ((header[:0x18] + b"\x07" + header[0x19:], raw), "its 8.0 image is another once decompressed"),
    ):
        stored = (with_payload(change[0], encode(change[1], ZSTD), images[0]), images[1])
        assert verdict(written(path, stored), stored) == reason


def test_the_new_cubin_is_what_ptxas_makes(native: Native, compiler: Compiler, tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", section([cubin("sm_80", ROOM), ptx_image(TEXT)]))
    (images,) = native(path, "9.0").containers.values()
    source = Bytes("new", written(path, images))
    raw = raw_payload(source, container_at(source, 0, source.size).images[0])
    assert cubins.parse(raw).kernels == {"scale": (8, 4), "shift": (8, 4)}
    assert raw == Cache(tmp_path / "cubins").get(next((tmp_path / "cubins").glob("*/*")).stem).cubin  # type: ignore[union-attr]
