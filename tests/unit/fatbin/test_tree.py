"""Slimming trees: links, caches, crashes, copies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import capabilities, cubin, library, section

from vllm_variants.errors import Interrupted, ResourceError, UsageError
from vllm_variants.fatbin import library as library_module
from vllm_variants.fatbin import slim as slim_module
from vllm_variants.fatbin.copy import slimmed_copy
from vllm_variants.fatbin.library import FileReport
from vllm_variants.fatbin.slim import SlimReport, slim_tree
from vllm_variants.fatbin.verify import Wrong

HOPPER = capabilities("9.0")
FATBIN = section([cubin("sm_80", 200_000), cubin("sm_90", 9000)], [cubin("sm_100", 150_000)])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "lib").mkdir(parents=True)
    library(root / "lib" / "libone.so.1", FATBIN)
    library(root / "lib" / "libtwo.so", FATBIN)
    (root / "lib" / "libone.so").symlink_to("libone.so.1")
    (root / "text").write_text("text" * 50_000)
    return root


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_library_is_slimmed_and_nothing_else_changes(tree: Path, jobs: int) -> None:
    told = []

    report = slim_tree(tree, HOPPER, jobs=jobs, progress=lambda *step: told.append(step))

    assert [f.path for f in report.changed] == ["lib/libone.so.1", "lib/libtwo.so"]
    assert report.after == sum(
        p.stat().st_size for p in tree.rglob("*") if p.is_file() and not p.is_symlink()
    )
    assert report.saved == report.before - report.after > 600_000
    assert (tree / "lib" / "libone.so").is_symlink()
    assert (tree / "text").read_text() == "text" * 50_000
    assert [done for done, _, _ in told][-1] == told[-1][1]
    assert sorted(path for _, _, path in told) == ["lib/libone.so.1", "lib/libtwo.so"]


def test_a_cache_that_shares_inodes_keeps_its_bytes(tree: Path, tmp_path: Path) -> None:
    before = contents(tree)
    installed = tmp_path / "installed"
    subprocess.run(["cp", "-al", str(tree), str(installed)], check=True)

    assert slim_tree(installed, HOPPER, jobs=1).saved > 0

    assert contents(tree) == before
    assert (tree / "text").stat().st_ino == (installed / "text").stat().st_ino


def test_names_of_one_inode_stay_names_of_one_inode(tree: Path) -> None:
    other = tree / "other.so"
    os.link(tree / "lib" / "libtwo.so", other)

    report = slim_tree(tree, HOPPER, jobs=1)

    assert other.stat().st_ino == (tree / "lib" / "libtwo.so").stat().st_ino
    assert other.stat().st_size < 200_000
    assert len(report.changed) == 2
    assert report.after == sum(
        {p.stat().st_ino: p.stat().st_size for p in tree.rglob("*") if p.is_file()}.values()
    )


def test_a_link_to_a_library_outside_is_left_alone(tree: Path, tmp_path: Path) -> None:
    outside = library(tmp_path / "outside.so", FATBIN)
    before = outside.read_bytes()
    (tree / "outside.so").symlink_to(outside)

    slim_tree(tree, HOPPER, jobs=1)

    assert outside.read_bytes() == before
    assert (tree / "outside.so").readlink() == outside


def test_a_malformed_library_is_kept_and_named(tree: Path) -> None:
    broken = library(tree / "broken.so", b"\x50\xed\x55\xba" + b"\x07" * 90_000)
    before = broken.read_bytes()

    report = slim_tree(tree, HOPPER, jobs=1)

    (kept,) = [f for f in report.files if not f.changed]
    assert kept.path == "broken.so"
    assert "malformed" in kept.kept
    assert "at offset 0x" in kept.kept
    assert broken.read_bytes() == before


def test_a_library_that_cannot_be_proven_is_kept_and_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tree)

    def refuse(source: object, path: object, changes: object) -> None:
        raise Wrong("made.so", "it is only a test")

    monkeypatch.setattr(library_module, "verify", refuse)

    report = slim_tree(tree, HOPPER, jobs=1)

    assert contents(tree) == before
    assert [f.kept.split(":")[0] for f in report.files] == ["not proven", "not proven"]


def test_no_room_is_one_sentence_and_leaves_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(tree)

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(library_module, "_write", full)

    with pytest.raises(ResourceError, match=r"no room to write the slimmed .*\.so"):
        slim_tree(tree, HOPPER, jobs=1)

    assert contents(tree) == before


def test_the_report_is_json(tree: Path) -> None:
    facts = slim_tree(tree, HOPPER, jobs=1).as_dict()

    assert facts["devices"] == ["9.0"]
    assert facts["ratio"] == round(facts["after"] / facts["before"], 4)
    assert {"path", "before", "after", "stubs"} <= facts["files"][0].keys()


def test_slimming_again_changes_nothing(tree: Path) -> None:
    slim_tree(tree, HOPPER, jobs=1)
    once = contents(tree)

    again = slim_tree(tree, HOPPER, jobs=1)

    assert contents(tree) == once
    assert again.changed == []
    assert again.saved == 0


KILLED = """
import os, sys, signal
from pathlib import Path
from vllm_variants.capability import Capability
from vllm_variants.fatbin import library
library.verify = lambda *given: (print("written", flush=True), signal.pause())
library.slim_file(Path(sys.argv[1]), [Capability(9, 0)])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_file_is_old_or_new_whenever_the_process_dies(tree: Path, how: signal.Signals) -> None:
    victim = tree / "lib" / "libtwo.so"
    before = victim.read_bytes()
    running = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(victim)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert running.stdout
    assert running.stdout.readline() == b"written\n"
    time.sleep(0.1)

    running.send_signal(how)
    running.wait()

    assert victim.read_bytes() == before
    left = list(tree.rglob(".*.slimming"))
    assert left == [] if how is signal.SIGINT else len(left) == 1
    slim_tree(tree, HOPPER, jobs=1)  # takes up what was left
    assert list(tree.rglob(".*.slimming")) == []
    assert victim.stat().st_size < 200_000


def slim(root: Path) -> SlimReport:
    return slim_tree(root, HOPPER, jobs=1)


@pytest.mark.parametrize("link", [False, True])
def test_a_slimmed_copy_leaves_the_source_alone(tree: Path, tmp_path: Path, link: bool) -> None:
    before = contents(tree)

    slimmed_copy(tree, tmp_path / "copy", slim, link=link)

    assert contents(tree) == before
    copied = contents(tmp_path / "copy")
    assert copied.keys() == before.keys()
    assert copied["text"] == before["text"]
    assert len(copied["lib/libtwo.so"]) < len(before["lib/libtwo.so"])
    assert ((tmp_path / "copy" / "text").stat().st_ino == (tree / "text").stat().st_ino) == link
    assert (tmp_path / "copy" / "lib" / "libone.so").is_symlink()


def test_a_copy_that_fails_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    def fail(root: Path) -> SlimReport:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slimmed_copy(tree, tmp_path / "copy", fail)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["tree"]


def test_an_existing_output_is_never_replaced(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()

    with pytest.raises(UsageError, match="exists already"):
        slimmed_copy(tree, tmp_path / "copy", slim)


def for_a_minute(path: Path) -> FileReport:
    time.sleep(60)
    return FileReport(str(path), 0, 0)


def die(path: Path) -> FileReport:
    os.kill(os.getpid(), signal.SIGKILL)
    return FileReport(str(path), 0, 0)


WORK = [(1, [Path("one")]), (1, [Path("two")])]


def test_a_stop_does_not_wait_for_libraries_under_way() -> None:
    def stop(signum: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(2)
    started = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            list(slim_module._slimmed(WORK, for_a_minute, 2))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_a_sentence() -> None:
    with pytest.raises(ResourceError, match="a process that slimmed was killed"):
        list(slim_module._slimmed(WORK, die, 2))
