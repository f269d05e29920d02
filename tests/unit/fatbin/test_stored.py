"""Images that a slimmed copy of the same library has stored already are taken, and proven all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from making import capabilities, cubin, library, section

from vllm_variants.fatbin import codecs
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import library as library_module
from vllm_variants.fatbin.codecs import Codec, Encoded
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.tree import slim_tree

AMPERE, ADA = capabilities("8.6"), capabilities("8.9")
SMALL = Rules(compress=Codec.ZSTD)
FATBIN = section(
    [cubin("sm_80", 200_000), cubin("sm_90", 300_000)],
    [cubin("sm_86", 150_000), cubin("sm_89", 160_000)],
    [cubin("sm_100", 150_000)],
    [cubin("sm_80", 120_000), cubin("sm_120", 100_000)],
)
SHARED, OWN = 2, 1
"""Containers whose images 8.6 and 8.9 share, and that have one for each."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return library(tmp_path / "published.so", FATBIN)


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """What was slimmed for 8.6 before."""
    slim_file(published, AMPERE, SMALL, to=tmp_path / "copy.so")
    return tmp_path / "copy.so"


@pytest.fixture
def fresh(published: Path, tmp_path: Path) -> bytes:
    """What slimming for 8.9 makes of the library by itself."""
    slim_file(published, ADA, SMALL, to=tmp_path / "fresh.so")
    return (tmp_path / "fresh.so").read_bytes()


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was compressed, as it happens."""
    sizes: list[int] = []
    smallest = codecs.smallest

    def noted(raw: bytes, *allowed: object) -> Encoded:
        sizes.append(len(raw))
        return smallest(raw, *allowed)  # type: ignore[arg-type]

    monkeypatch.setattr(codecs, "smallest", noted)
    return sizes


def payloads(path: Path) -> list[tuple[int, int]]:
    """Where the payloads of zstd images lie: offset and compressed size in bytes."""
    with opened(path) as source:
        return [
            (image.offset + image.header_size, image.compressed_size)
            for part in device_sections(elfs.parse(source))
            for container in containers_in(source, part)
            for image in container.images
            if image.compression == "zstd"
        ]


def test_shared_images_are_taken_and_give_the_same_bytes(
    published: Path, copy: Path, fresh: bytes, compressed: list[int], tmp_path: Path
) -> None:
    report = slim_file(published, ADA, SMALL, stored=[copy], to=tmp_path / "new.so")

    assert (tmp_path / "new.so").read_bytes() == fresh
    assert len(compressed) == OWN
    assert (report.shared_images, report.compressed_images) == (SHARED, SHARED + OWN)


def test_without_a_copy_every_image_is_compressed(
    published: Path, fresh: bytes, compressed: list[int], tmp_path: Path
) -> None:
    report = slim_file(published, ADA, SMALL, to=tmp_path / "new.so")

    assert len(compressed) == OWN + SHARED
    assert (report.shared_images, report.compressed_images) == (0, SHARED + OWN)


def test_a_damaged_copy_never_reaches_the_new_file(
    published: Path, copy: Path, fresh: bytes, tmp_path: Path
) -> None:
    data = bytearray(copy.read_bytes())
    for offset, size in payloads(copy):
        data[offset + size // 2] ^= 0xFF
    copy.write_bytes(data)

    report = slim_file(published, ADA, SMALL, stored=[copy], to=tmp_path / "new.so")

    assert (tmp_path / "new.so").read_bytes() == fresh
    assert not report.shared_images


def test_other_code_in_a_copy_never_reaches_the_new_file(
    published: Path, fresh: bytes, tmp_path: Path
) -> None:
    other = library(tmp_path / "other.so", FATBIN.replace(b"sm_80 machine", b"sm_80 MACHINE"))
    slim_file(other, AMPERE, SMALL)
    assert payloads(other)

    slim_file(published, ADA, SMALL, stored=[other], to=tmp_path / "new.so")

    assert (tmp_path / "new.so").read_bytes() == fresh


@pytest.mark.parametrize("what", ["absent", "a folder", "cut off", "no library", "published"])
def test_a_copy_that_gives_nothing_is_passed_over(
    what: str, published: Path, copy: Path, fresh: bytes, tmp_path: Path
) -> None:
    data = copy.read_bytes()
    copy.unlink()
    match what:
        case "a folder":
            copy.mkdir()
        case "cut off":
            copy.write_bytes(data[: len(data) // 2])
        case "no library":
            copy.write_bytes(b"\x7fELF, it says")
        case "published":
            shutil.copy(published, copy)

    slim_file(published, ADA, SMALL, stored=[copy], to=tmp_path / "new.so")

    assert (tmp_path / "new.so").read_bytes() == fresh


def test_a_wrong_file_without_a_copy_s_part_in_it_is_refused(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*anything: object) -> None:
        raise Wrong("it", "on purpose")

    monkeypatch.setattr(library_module, "verify", wrong)

    with pytest.raises(Wrong):
        slim_file(published, ADA, SMALL, stored=[tmp_path / "absent.so"])


def test_nothing_is_taken_for_another_codec(published: Path, copy: Path, tmp_path: Path) -> None:
    slim_file(published, ADA, Rules(compress=Codec.LZ4), to=tmp_path / "fresh.so")
    slim_file(published, ADA, Rules(compress=Codec.LZ4), stored=[copy], to=tmp_path / "new.so")

    assert (tmp_path / "new.so").read_bytes() == (tmp_path / "fresh.so").read_bytes()
    assert not payloads(tmp_path / "new.so")


def test_a_dry_run_counts_as_the_run_does(published: Path, copy: Path) -> None:
    would = slim_file(published, ADA, SMALL, stored=[copy], dry_run=True)

    assert slim_file(published, ADA, SMALL, stored=[copy]) == would


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_tree_takes_what_the_library_at_the_same_path_has(
    jobs: int, tmp_path: Path, compressed: list[int]
) -> None:
    trees = [tmp_path / name for name in ("before", "new", "alone")]
    for tree in trees:
        (tree / "lib").mkdir(parents=True)
        for name in ("one.so", "two.so"):
            library(tree / "lib" / name, FATBIN)
    before, new, alone = trees
    slim_tree(before, AMPERE, SMALL)
    slim_tree(alone, ADA, SMALL)
    compressed.clear()

    report = slim_tree(new, ADA, SMALL, stored=[before], jobs=jobs)

    assert report.shared_images == 2 * SHARED
    assert len(compressed) == (2 * OWN if jobs == 1 else 0)  # other processes compress unseen

    for name in ("one.so", "two.so"):
        assert (new / "lib" / name).read_bytes() == (alone / "lib" / name).read_bytes()
