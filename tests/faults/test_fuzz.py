"""The fuzzer, for a second or two, and its judge: it sees harm that the slimmer's own proof might not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import shapes
from oracle import Asked, Defect, examine, judge

from vllm_variants.fatbin import library, planning
from vllm_variants.fatbin.library import slim_file
from vllm_variants.model.capability import Capability

ROOT = Path(__file__).resolve().parents[2]
HOPPER = Asked((Capability(9, 0),), False, True, 0x1000, True)


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
