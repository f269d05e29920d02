"""The fuzzer, for a second or two, and its judge: it sees harm that the slimmer's own proof might not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import shapes
import zstandard
from oracle import Asked, Defect, examine, judge

from vllm_variants.fatbin import library, planning
from vllm_variants.fatbin.library import slim_file
from vllm_variants.model.capability import Capability

ROOT = Path(__file__).resolve().parents[2]
HOPPER = Asked((Capability(9, 0),), False, True, 0x1000, True)


@pytest.fixture(autouse=True)
def _own_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `examine` sets for an execution ends with the test."""
    monkeypatch.setattr(planning, "SMALLEST_HOLE", planning.SMALLEST_HOLE)


def test_no_input_of_a_short_run_shows_a_defect() -> None:
    command = [sys.executable, str(ROOT / "bench" / "fuzz.py"), "--executions", "1500", "--seed", "1"]
    done = subprocess.run([*command, "--processes", "2"], capture_output=True, text=True, check=False)
    summary = json.loads(done.stdout)
    assert summary["defects"] == {}, done.stdout
    assert summary["executions"] == 1500
    assert summary["outcomes"]["slimmed"] > 30
    assert done.returncode == 0


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A library and what slimming makes of it."""
    monkeypatch.setattr(planning, "SMALLEST_HOLE", 0x1000)
    big = shapes.container([image("sm_80", 30_000), image("sm_90", 500)])
    parts = [
        shapes.Part(".nv_fatbin", big + shapes.container([image("sm_90", 400)])),
        shapes.Part(".text", b"x" * 99, 6),
    ]
    data = shapes.laid_out(shapes.X86_64, [parts, [shapes.Part(".data", b"data" * 99, 3)]], [], 0x1000)
    (tmp_path / "old.so").write_bytes(data)
    assert slim_file(tmp_path / "old.so", HOPPER.devices, to=tmp_path / "new.so").changed
    return tmp_path / "old.so", tmp_path / "new.so"


def image(word: str, size: int) -> bytes:
    head = shapes._IMAGE.pack(2, 0x101, 64, size // 8 * 8, 0, 0, 7, 1, int(word[3:]), 0, 0, 0x11, 0, 0)
    return head + word.encode()[-1:] * (size // 8 * 8)


def judged(pair: tuple[Path, Path]) -> None:
    judge(pair[0].read_bytes(), pair[1].read_bytes(), *pair, HOPPER)


def without_a_segment(data: bytes) -> bytes:
    """The first segment's header made one of no type."""
    table = int.from_bytes(data[32:40], "little")
    return data[:table] + bytes(4) + data[table + 4 :]


def test_what_slimming_makes_is_whole(pair: tuple[Path, Path]) -> None:
    judged(pair)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda data: data.replace(b"x" * 99, b"x" * 98 + b"y"), "changed"),
        (lambda data: data.replace(b"data", b"dada", 1), "changed"),
        (lambda data: data.replace(b"0" * 496, b"0" * 495 + b"1", 1), "image of the container"),
        (without_a_segment, "gone"),
        (lambda data: data.replace(b"\x5a\x00\x00\x00", b"\x50\x00\x00\x00", 1), "what the plan keeps"),
    ],
)
def test_harm_is_seen(pair: tuple[Path, Path], harm: Callable[[bytes], bytes], what: str) -> None:
    data = pair[1].read_bytes()
    harmed = harm(data)
    assert harmed != data
    pair[1].write_bytes(harmed)

    with pytest.raises(Defect, match=what):
        judged(pair)


def test_an_empty_segment_where_pages_are_cut_is_no_obstacle(tmp_path: Path) -> None:
    """Its offset must be its address's modulo the alignment; it lies among pages that nothing maps."""
    text, data = shapes.Part(".text", b"x" * 99, 6), shapes.Part(".data", b"data" * 99, 3)
    groups = [[text], [shapes.Part(".nv_fatbin", b"")], [data]]
    made = shapes.laid_out(shapes.X86_64, groups, [], 0x4000, 0x3009)
    outcome = examine(made, replace(HOPPER, keep_symbols=False), tmp_path)
    assert outcome.kind == "slimmed"


@pytest.mark.parametrize("gap", [0x25E0, 0x3490, 0x3A70])
def test_what_lies_behind_the_loaded_bytes_may_share_offsets_with_an_empty_segment(
    gap: int, tmp_path: Path
) -> None:
    """It holds no byte; where its address lies high in a page, so does its offset."""
    code = shapes.container([image("sm_80", 30_000), image("sm_90", 300)])
    text, data = shapes.Part(".text", b"x" * 99, 6), shapes.Part(".data", b"data" * 99, 3)
    groups = [[text, shapes.Part(".nv_fatbin", code)], [shapes.Part("__nv_relfatbin", b"")], [data]]
    loose = [shapes.Part(".debug_info", b"d" * 9000, 0), shapes.Part(".comment", b"comment" * 9, 0)]
    made = shapes.laid_out(shapes.X86_64, groups, loose, 0x1000, gap)
    assert examine(made, replace(HOPPER, keep_symbols=False), tmp_path).kind == "slimmed"


def test_a_number_of_segments_that_stands_in_the_first_section_is_found_there(
    tmp_path: Path, stripped: tuple[Path, Path, Asked]
) -> None:
    data = bytearray(stripped[0].read_bytes())
    sections = int.from_bytes(data[40:48], "little")
    data[sections + 44 : sections + 48] = int.from_bytes(data[56:58], "little").to_bytes(4, "little")
    data[56:58] = b"\xff\xff"
    (tmp_path / "alone").mkdir()
    assert examine(bytes(data), stripped[2], tmp_path / "alone").kind == "slimmed"


@pytest.fixture
def stripped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Asked]:
    """A library with symbols, and what compressing and stripping make of it."""
    monkeypatch.setattr(planning, "SMALLEST_HOLE", 0x1000)
    code = shapes.container([image("sm_90", 30_000)])
    loose = [shapes.Part(".debug_info", b"d" * 9000, 0), shapes.Part(".comment", b"comment" * 9, 0)]
    parts = [[shapes.Part(".nv_fatbin", code), shapes.Part(".text", b"x" * 99, 6)]]
    (tmp_path / "old.so").write_bytes(shapes.laid_out(shapes.X86_64, parts, loose, 0x1000))
    asked = replace(HOPPER, compress="zstd", keep_symbols=False)
    report = slim_file(tmp_path / "old.so", asked.devices, asked.rules, to=tmp_path / "new.so")
    assert report.compressed_images == 1 and report.sections == (".debug_info",)
    return tmp_path / "old.so", tmp_path / "new.so", asked


def test_what_compressing_and_stripping_make_is_whole(stripped: tuple[Path, Path, Asked]) -> None:
    old, new, asked = stripped
    judge(old.read_bytes(), new.read_bytes(), old, new, asked)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda data: data.replace(b"x" * 99, b"x" * 98 + b"y"), "changed"),
        (lambda data: data.replace(b"comment" * 9, b"comment" * 8 + b"COMMENT"), "section 4, which is not"),
        (lambda data: without_a_section(data, 2), "section 2 may not go"),
        (lambda data: without_a_section(data, 4), "section 4 is neither symbols nor debug"),
        (lambda data: recompressed(data), "an image of the container"),
    ],
)
def test_harm_to_what_was_compressed_or_stripped_is_seen(
    stripped: tuple[Path, Path, Asked], harm: Callable[[bytes], bytes], what: str
) -> None:
    old, new, asked = stripped
    harmed = harm(new.read_bytes())
    assert harmed != new.read_bytes()
    new.write_bytes(harmed)
    with pytest.raises(Defect, match=what):
        judge(old.read_bytes(), harmed, old, new, asked)


def without_a_section(data: bytes, number: int) -> bytes:
    """A section's header made inactive."""
    at = int.from_bytes(data[40:48], "little") + 64 * number
    return data[:at] + bytes(64) + data[at + 64 :]


def recompressed(data: bytes) -> bytes:
    """The zstd frame replaced by one of other bytes of the same length, as long as the old one at most."""
    start = data.index(b"\x28\xb5\x2f\xfd")
    at = data.rindex(b"\x02\x00\x01\x01", 0, start)
    size, plain = (int.from_bytes(data[at + f : at + f + n], "little") for f, n in ((16, 4), (56, 8)))
    other = zstandard.ZstdCompressor(level=9).compress(bytes(plain))
    assert len(other) <= size
    padded = other.ljust(-(-size // 8) * 8, b"\0")
    head = data[:at] + data[at : at + 16] + len(other).to_bytes(4, "little") + data[at + 20 : start]
    return head + padded + data[start + len(padded) :]


def test_a_whole_library_may_not_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_variants.fatbin.proof import Wrong

    def refuse(*anything: object, **more: object) -> None:
        raise Wrong("input.so", "it is sabotaged")

    monkeypatch.setattr(library, "slim_file", refuse)
    with pytest.raises(Defect, match="a whole library was refused"):
        examine(shapes.library(random.Random(1)), HOPPER, tmp_path)


def test_spoilt_inputs_differ_and_the_same_seed_spoils_alike() -> None:
    data = shapes.library(random.Random(3))
    spoilt = [shapes.spoil(data, data, random.Random(seed)) for seed in range(200)]
    assert sum(each != data for each in spoilt) > 180
    assert spoilt == [shapes.spoil(data, data, random.Random(seed)) for seed in range(200)]
