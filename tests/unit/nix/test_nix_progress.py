"""What a batch looks like from the outside, gathered from recorded logs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from vllm_variants.nix.events import LogLine, parse
from vllm_variants.nix.progress import Tracker, store_name

LOGS = Path(__file__).parent / "logs"


def ticking() -> Iterator[float]:
    return iter(map(float, count()))


def play(name: str) -> Tracker:
    """A tracker that has seen a whole log; its clock goes one second an event of interest."""
    seconds = ticking()
    tracker = Tracker(clock=lambda: next(seconds))
    for line in (LOGS / name).read_text(encoding="utf-8").splitlines():
        event = parse(line)
        if event:
            tracker.apply(event)
    return tracker


def build_named(tracker: Tracker, part: str) -> str:
    (drv,) = [drv for drv in tracker.builds if part in drv]
    return drv


def test_a_build_has_phase_objects_and_time() -> None:
    tracker = play("built.jsonl")
    build = tracker.builds[build_named(tracker, "cuda12_9-sm90-0.13.0.drv")]
    assert build.phase == "buildPhase"
    assert build.objects == (12, 12)
    assert build.ended is not None
    assert build.seconds(build.started + 100) == build.ended - build.started > 0
    assert tracker.running == []
    assert tracker.failed == 0


def test_failures_are_counted_and_their_last_lines_kept() -> None:
    tracker = play("two-of-three-failed.jsonl")
    assert tracker.failed == 2
    sm86 = tracker.builds[build_named(tracker, "sm86-0.13.0.drv")]
    assert sm86.objects == (58, 406)
    assert list(sm86.tail)[-3:] == [
        "FAILED: CMakeFiles/_C.dir/csrc/kernel_58.cu.o",
        "c++: fatal error: Killed signal terminated program cc1plus",
        "ninja: build stopped: subcommand failed.",
    ]
    assert any(sm86.drv in error for error in tracker.errors)


def test_a_remote_build_is_one_build_though_nix_tells_it_twice() -> None:
    tracker = play("remote.jsonl")
    build = tracker.builds[build_named(tracker, "cuda12_9-sm70-0.13.0.drv")]
    assert build.machine == "ssh-ng://farm"
    assert build.ended is not None
    assert build.objects == (12, 12)


def test_downloads_add_up() -> None:
    tracker = play("fetched.jsonl")
    assert tracker.to_copy == 38024
    assert tracker.bytes_copied == 32768
    assert tracker.copies == {}
    assert tracker.builds == {}


def test_objects_are_counted_only_where_ninja_counts() -> None:
    tracker = play("other-nixes.jsonl")
    build = tracker.builds[build_named(tracker, "vllm.drv")]
    assert build.objects == (3, 406)
    for line in ("see [1/2] of the list", "array[3/4]", "[5/x] y", "#12 [7/9]"):
        tracker.apply(LogLine(7, line))
    assert build.objects == (3, 406)


def test_names_lose_hash_and_prefix() -> None:
    prefix = "/nix/store/" + "a" * 32
    assert store_name(f"{prefix}-python3.12-torch-2.9.1.drv") == "torch-2.9.1"
    assert store_name(f"{prefix}-gcc-wrapper-14.3.0.drv") == "gcc-wrapper-14.3.0"
    assert store_name("no store path") == "no store path"
