"""All rules in one pass: dropped, compiled, stored in less room and stripped, and proven as one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from compiling import ptx_image, ptx_text
from making import Made, capabilities, cubin, library, listed, section

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import library as writer
from vllm_variants.fatbin.codecs import Codec, codec_for, raw_payload
from vllm_variants.fatbin.container import Container, Image
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.library import Native
from vllm_variants.fatbin.native.queue import Limits
from vllm_variants.fatbin.planning import FilePlan
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import OpenFile, opened
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.fatbin.tree import slim_tree

HOPPER = capabilities("9.0")
SMALL = Rules(compress=Codec.ZSTD, keep_symbols=False)
TEXT = ptx_text("scale", "shift", comment="room for a cubin " * 900)


def containers(path: Path) -> list[Container]:
    with opened(path) as source:
        return [c for s in device_sections(elfs.parse(source)) for c in containers_in(source, s)]


def code(path: Path) -> list[list[tuple[str, str, bytes]]]:
    """Each container's images: kind and target, and the code decompressed."""
    with opened(path) as source:
        return [
            [(str(i.kind), str(i.target), raw_payload(source, i)) for i in c.images] for c in containers(path)
        ]


def images(path: Path) -> list[Image]:
    return [image for container in containers(path) for image in container.images]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    fatbin = section(
        [cubin("sm_80", 200_000), cubin("sm_90", 300_000)],
        [cubin("sm_100", 150_000)],
        [cubin("sm_90a", 150_000), ptx_image(TEXT)],
        [cubin("sm_90", 900)],
    )
    return library(tmp_path / "mixed.so", fatbin)


@pytest.fixture
def native(compiler: Compiler, tmp_path: Path) -> Native:
    return Native(compiler, Cache(tmp_path / "cubins"), Limits(2, lambda: 10**12))


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_images_that_stay_are_stored_in_less_room_and_are_the_same_code(
    codec: Codec, mixed: Path, tmp_path: Path
) -> None:
    plain, small = tmp_path / "plain.so", tmp_path / "small.so"
    slim_file(mixed, HOPPER, to=plain)
    report = slim_file(mixed, HOPPER, Rules(compress=codec), to=small)

    assert report.saved["compress"] > 300_000 and report.compressed_images > 1
    assert small.stat().st_size == report.after < plain.stat().st_size - 300_000
    assert code(small) == code(plain)
    assert {image.compression for image in images(small)} == {str(codec), "none"}
    assert listed(small) == listed(plain)


def test_an_image_that_frees_no_page_keeps_its_bytes(mixed: Path) -> None:
    slim_file(mixed, HOPPER, SMALL)
    assert images(mixed)[-1].compression == "none"


def test_the_second_time_nothing_changes_and_stubs_are_known_for_stubs(mixed: Path) -> None:
    slim_file(mixed, HOPPER, SMALL)
    once = mixed.read_bytes()
    assert slim_file(mixed, HOPPER, SMALL).kept == "nothing to drop"
    assert mixed.read_bytes() == once
    with opened(mixed) as source:
        assert [is_stub(source, image) for image in images(mixed)].count(True) == 1


def test_a_slimmed_file_can_be_compressed_later(mixed: Path, tmp_path: Path) -> None:
    at_once = tmp_path / "once.so"
    slim_file(mixed, HOPPER, SMALL, to=at_once)
    slim_file(mixed, HOPPER)
    slim_file(mixed, HOPPER, SMALL)
    assert code(mixed) == code(at_once)
    assert mixed.stat().st_size <= at_once.stat().st_size + 0x2000  # a page more or less at two holes


def test_without_devices_every_image_stays(mixed: Path) -> None:
    before = code(mixed)
    assert slim_file(mixed, (), SMALL).saved["images"] <= 0
    assert code(mixed) == before


def test_the_same_file_gives_the_same_bytes(mixed: Path, tmp_path: Path) -> None:
    for name in ("a.so", "b.so"):
        slim_file(mixed, HOPPER, SMALL, to=tmp_path / name)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def test_a_dry_run_says_what_would_be_saved_and_writes_nothing(mixed: Path) -> None:
    before = mixed.read_bytes()
    would = slim_file(mixed, HOPPER, SMALL, dry_run=True)
    assert mixed.read_bytes() == before
    assert slim_file(mixed, HOPPER, SMALL) == would


@pytest.mark.parametrize(("driver", "codec"), [(525, "lz4"), (549, "lz4"), (550, "zstd"), (560, "zstd")])
def test_the_oldest_driver_decides_the_codec(driver: int, codec: str) -> None:
    assert codec_for(driver) == codec


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_pass_compiles_compresses_and_strips_a_tree(
    jobs: int, mixed: Path, native: Native, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    mixed.rename(tree / "mixed.so")
    library(tree / "other.so", section([cubin("sm_80", 90_000), ptx_image(TEXT)]))
    library(tree / "small.so", section([ptx_image(TEXT)]))
    report = slim_tree(tree, HOPPER, SMALL, native=native, jobs=jobs)

    assert [library.path for library in report.files if library.compiled_images] == ["other.so", "small.so"]
    kinds = {path.name: [words[:2] for held in code(path) for words in held] for path in tree.iterdir()}
    assert kinds["other.so"] == kinds["small.so"] == [("cubin", "9.0")]
    assert kinds["mixed.so"][-1] == ("cubin", "9.0")
    assert report.saved_by_rule["compress"] > 0
    assert not [left for library in report.native for left in library.left]
    assert not slim_tree(tree, HOPPER, SMALL, native=native, jobs=jobs).changed


def test_compiled_code_that_frees_no_page_is_written_all_the_same(native: Native, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    small = library(tree / "small.so", section([ptx_image(TEXT)]))
    before = small.stat().st_size
    (report,) = slim_tree(tree, HOPPER, native=native, jobs=1).files
    assert report.compiled_images == 1 and small.stat().st_size == before
    assert listed(small) == ["sm_90"]


def wrongly_stored(plan: FilePlan) -> FilePlan:
    """The plan with one new image whose payload is another once decompressed."""
    changes = list(plan.changes)
    for index, change in enumerate(changes):
        new = [image for image in change.images if not isinstance(image, Image)]
        if new:
            spoiled = replace(new[0], payload=new[0].payload[:-9] + b"\x55" * 9)
            changes[index] = replace(
                change, images=tuple(spoiled if i is new[0] else i for i in change.images)
            )
            return replace(plan, changes=tuple(changes))
    raise AssertionError("nothing is stored anew: this test tests nothing")


def test_a_payload_that_is_another_once_decompressed_is_noticed(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, before = writer.plan_file, mixed.read_bytes()
    monkeypatch.setattr(writer, "plan_file", lambda *given: wrongly_stored(planned(*given)))
    with pytest.raises(Wrong):
        slim_file(mixed, HOPPER, SMALL)
    assert mixed.read_bytes() == before


def test_what_was_to_be_written_and_was_not_is_noticed(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = writer._fill

    def spoil(source: OpenFile, plan: FilePlan, descriptor: int) -> None:
        fill(source, plan, descriptor)
        at = containers_at(plan)
        with open(descriptor, "r+b", closefd=False) as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    def containers_at(plan: FilePlan) -> int:
        change = next(c for c in plan.changes if not all(isinstance(i, Image) for i in c.images))
        return plan.layout.shift(change.container.offset) + 16 + 64 + 40

    monkeypatch.setattr(writer, "_fill", spoil)
    with pytest.raises(Wrong, match="not what was to be written"):
        slim_file(mixed, HOPPER, SMALL)


def test_a_section_that_an_earlier_slimming_cut_is_proven_again(tmp_path: Path) -> None:
    resource = b"table" * 9 + section([cubin("sm_120", 190_000)]) + b"more"
    made: Made = cubin("sm_90", 300_000)
    path = library(tmp_path / "a.so", section([made]), more={".cask_resource": resource})
    slim_file(path, HOPPER)
    assert slim_file(path, HOPPER, SMALL).changed
