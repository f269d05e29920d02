"""Stubs: valid to the official reader for every target there is, and never taken for code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from making import Made, cubin, cuobjdump, library, listed, ptx, section

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.stub import empty_cubin, is_stub
from vllm_variants.model.capability import Capability, Target

OLDER = ["sm_50", "sm_52", "sm_60", "sm_61", "sm_70", "sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89"]
NEWER = [
    "sm_100",
    "sm_100a",
    "sm_101",
    "sm_103",
    "sm_103a",
    "sm_110",
    "sm_120",
    "sm_120a",
    "sm_121",
    "sm_121a",
]
TARGETS = [*OLDER, "sm_90", "sm_90a", *NEWER]


@pytest.mark.parametrize("word", TARGETS)
def test_cuobjdump_reads_an_empty_cubin_of_every_target(tmp_path: Path, word: str) -> None:
    path = tmp_path / "made.cubin"
    path.write_bytes(empty_cubin(Target.parse(word)))

    told = subprocess.run([cuobjdump(), "-elf", str(path)], capture_output=True, text=True, check=False)

    assert told.returncode == 0, told.stderr
    assert f"sm={word.removeprefix('sm_')}," in told.stdout
    assert len(path.read_bytes()) < 700


@pytest.mark.parametrize("word", [*TARGETS, "compute_70", "compute_120"])
def test_a_stub_stands_for_its_target_in_cuobjdumps_list(tmp_path: Path, word: str) -> None:
    device = Capability(5, 0) if word not in ("sm_50",) else Capability(9, 0)
    big = ptx(word, 200_000) if word.startswith("compute") else cubin(word, 200_000)
    path = library(tmp_path / "made.so", section([big], [cubin(device.sm.replace("sm", "sm_"))]))

    report = slim_file(path, [device])

    assert report.stubs == 1
    assert listed(path) == sorted([word, device.sm.replace("sm", "sm_")])


def test_the_smallest_cubin_gives_its_target(tmp_path: Path) -> None:
    images = [cubin("sm_80", 150_000), cubin("sm_75", 90_000), ptx("compute_80", 10), cubin("sm_86", 99_000)]
    path = library(tmp_path / "made.so", section(images))

    slim_file(path, [Capability(7, 0)])

    assert listed(path) == ["sm_75"]


def test_a_stub_is_known_again_and_code_is_not_taken_for_one(tmp_path: Path) -> None:
    images = [Made("sm_80", empty_cubin(Target.parse("sm_80"))), cubin("sm_80"), cubin("sm_90", 9000)]
    path = library(tmp_path / "made.so", section(images))

    with opened(path) as source:
        (section_found,) = device_sections(elfs.parse(source))
        (container,) = containers_in(source, section_found)
        assert [is_stub(source, image) for image in container.images] == [True, False, False]


def test_a_container_smaller_than_a_stub_stays_and_the_rest_is_slimmed(tmp_path: Path) -> None:
    tiny = [Made("sm_80", b"lz4 data", flags=0x2000), Made("sm_75", b"lz4 data", flags=0x2000)]
    path = library(tmp_path / "made.so", section([cubin("sm_100", 150_000)], tiny, [cubin("sm_90", 2000)]))

    report = slim_file(path, [Capability(9, 0)])

    assert (report.changed, report.stubs) == (True, 1)
    with opened(path) as source:
        found = [c for s in device_sections(elfs.parse(source)) for c in containers_in(source, s)]
    assert [[image.target.sm for image in c.images] for c in found] == [
        ["sm_100"],
        ["sm_80", "sm_75"],
        ["sm_90"],
    ]
