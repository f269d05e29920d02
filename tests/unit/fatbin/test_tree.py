"""Slimming trees: links, caches, crashes, copies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from making import capabilities, cubin, library, section

from vllm_variants.errors import ExitCode, Interrupted, ResourceError, UsageError
from vllm_variants.fatbin import library as library_module
from vllm_variants.fatbin import tree as slim_module
from vllm_variants.fatbin import workers
from vllm_variants.fatbin.copy import slimmed_copy
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.slim_path import slim_path
from vllm_variants.fatbin.tree import SlimReport, Stopped, slim_tree
from vllm_variants.system import atomic, new_folder

Inodes = dict[tuple[int, int], tuple[int, list[str]]]
HOPPER = capabilities("9.0")
FATBIN = section([cubin("sm_80", 200_000), cubin("sm_90", 9000)], [cubin("sm_100", 150_000)])


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def aside(root: Path) -> list[Path]:
    """What is being written, or was when its writer was killed."""
    return [path for path in root.rglob("*") if atomic.leftover_target(path)]


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

    def refuse(*given: object) -> None:
        raise Wrong("made.so", "it is only a test")

    monkeypatch.setattr(library_module, "verify", refuse)

    report = slim_tree(tree, HOPPER, jobs=1)

    assert contents(tree) == before
    assert [f.kept.split(":")[0] for f in report.files] == ["not proven", "not proven"]


def test_no_room_is_one_sentence_and_leaves_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(tree)

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(library_module, "write_pieces", full)

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
from vllm_variants.model.capability import Capability
from vllm_variants.fatbin import library
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
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
    assert len(aside(tree)) == (0 if how is signal.SIGINT else 1)
    slim_tree(tree, HOPPER, jobs=1)  # takes up what was left
    assert aside(tree) == []
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


@pytest.mark.parametrize("link", [False, True])
def test_a_copy_has_nothing_of_what_another_run_is_writing(tree: Path, tmp_path: Path, link: bool) -> None:
    with (
        atomic.new_file(tree / "lib" / "libtwo.so") as new,
        new_folder.aside(tree / "lib" / "other") as folder,
    ):
        os.write(new.descriptor, b"half of it")
        (folder / "half.so").write_bytes(b"half of it")

        slimmed_copy(tree, tmp_path / "copy", slim, link=link)

    assert contents(tmp_path / "copy").keys() == contents(tree).keys()


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


def test_peoples_files_are_theirs_whatever_they_are_called(tree: Path) -> None:
    theirs = [tree / "my notes.slimming", tree / "lib" / ".libtwo.so.slimming", tree / ".x.vllm-variants-new"]
    for path in theirs:
        path.write_text("mine")
    (tree / ".copy.slimming").mkdir()

    assert len(slim_tree(tree, HOPPER, jobs=1).changed) == 2
    slimmed_copy(tree, tree.with_name("copy"), slim)

    assert [path.read_text() for path in theirs] == ["mine"] * 3
    assert (tree / ".copy.slimming").is_dir()


@pytest.mark.parametrize("what", ["the tree", "a library"])
def test_a_dry_run_leaves_what_a_killed_run_left(what: str, tree: Path) -> None:
    left = tree / "lib" / ".libtwo.so.0123456789ab.vllm-variants-new"
    left.write_bytes(b"half of it")
    path = tree if what == "the tree" else tree / "lib" / "libtwo.so"

    slim_path(path, HOPPER, Rules(), dry_run=True)
    assert left.read_bytes() == b"half of it"

    slim_path(path, HOPPER, Rules())
    assert not left.exists()


def test_what_another_run_is_writing_is_neither_touched_nor_slimmed(tree: Path) -> None:
    with atomic.new_file(tree / "lib" / "libtwo.so") as new:
        os.write(new.descriptor, (tree / "lib" / "libtwo.so").read_bytes())

        report = slim_tree(tree, HOPPER, jobs=1)

        assert new.path.stat().st_size > 300_000
    assert [f.path for f in report.files] == ["lib/libone.so.1", "lib/libtwo.so"]


def refused(path: str) -> OSError:
    return PermissionError(errno.EACCES, "Permission denied", path)


def test_what_cannot_be_read_is_named_and_the_rest_is_slimmed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "closed").mkdir()
    scandir, open_regular = os.scandir, slim_module.open_regular

    def scanned(path: str | int) -> object:
        if str(path).endswith("closed"):
            raise refused(str(path))
        return scandir(path)

    def opened(path: str) -> int:
        if path.endswith("libtwo.so"):
            raise refused(path)
        return open_regular(path)

    monkeypatch.setattr(os, "scandir", scanned)
    monkeypatch.setattr(slim_module, "open_regular", opened)

    report = slim_tree(tree, HOPPER, jobs=1)

    assert [f.path for f in report.changed] == ["lib/libone.so.1"]
    assert [(f.path, f.kept) for f in report.failed] == [
        ("closed", "cannot be read: Permission denied"),
        ("lib/libtwo.so", "cannot be read: Permission denied"),
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_library_that_is_removed_meanwhile_is_named_and_the_rest_is_slimmed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    listed = slim_module._without_leftovers

    def then_removed(inodes: Inodes, *, remove: bool) -> Inodes:
        (tree / "lib" / "libtwo.so").unlink()
        return listed(inodes, remove=remove)

    monkeypatch.setattr(slim_module, "_without_leftovers", then_removed)
    monkeypatch.setattr(slim_module, "_is_readable_elf", lambda name, unreadable: name.find(".so") > 0)

    report = slim_tree(tree, HOPPER, jobs=jobs)

    assert [f.path for f in report.changed] == ["lib/libone.so.1"]
    (failed,) = report.failed
    assert (failed.path, failed.kept) == ("lib/libtwo.so", f"{tree}/lib/libtwo.so was removed")


def test_a_name_in_another_encoding_is_slimmed_by_workers(tree: Path) -> None:
    odd = os.fsencode(tree) + b"/lib/\xff\xfe \xc3\xa9.so"
    Path(os.fsdecode(odd)).hardlink_to(tree / "lib" / "libtwo.so")
    (tree / "lib" / "libtwo.so").unlink()

    report = slim_tree(tree, HOPPER, jobs=2)

    assert len(report.changed) == 2
    assert Path(os.fsdecode(odd)).stat().st_size < 200_000


@pytest.mark.parametrize("to", ["out", "lib/out", "../tree/out", "lib/../out"])
def test_an_output_in_the_input_is_refused(tree: Path, to: str) -> None:
    before = contents(tree)

    with pytest.raises(UsageError, match="lies in"):
        slimmed_copy(tree, tree / to, slim)

    assert contents(tree) == before


def test_a_dangling_link_is_an_output_that_exists(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").symlink_to("nowhere")

    with pytest.raises(UsageError, match="exists already"):
        slimmed_copy(tree, tmp_path / "copy", slim)

    assert (tmp_path / "copy").is_symlink()


def test_an_output_that_appears_meanwhile_stays(tree: Path, tmp_path: Path) -> None:
    def and_somebody_else(root: Path) -> SlimReport:
        (tmp_path / "copy").mkdir()
        return slim(root)

    with pytest.raises(UsageError, match="exists already"):
        slimmed_copy(tree, tmp_path / "copy", and_somebody_else)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "tree"]
    assert list((tmp_path / "copy").iterdir()) == []


COPIED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from vllm_variants.fatbin.copy import slimmed_copy
slimmed_copy(Path(sys.argv[1]), Path(sys.argv[2]), lambda root: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_copy_left_is_removed_by_the_next_and_nothing_else_is(
    tree: Path, tmp_path: Path
) -> None:
    to = tmp_path / "copy"
    subprocess.run([sys.executable, "-c", COPIED, str(tree), str(to)], check=False)
    (left,) = [path for path in tmp_path.iterdir() if atomic.is_leftover_of(path, to)]
    theirs = atomic.name_beside(to)  # no writer ever was in it
    (theirs / "folder").mkdir(parents=True)
    under_way = []

    def meanwhile(root: Path) -> SlimReport:
        if not under_way:
            under_way.append(root)
            slimmed_copy(tree, to, meanwhile)  # another copy to the same output does not sweep this one
            to.rename(tmp_path / "first")
        return slim(root)

    slimmed_copy(tree, to, meanwhile)

    assert not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["tree", "copy", "first", theirs.name])


def test_a_copy_of_folders_that_are_not_writable_keeps_their_modes_and_times(
    tree: Path, tmp_path: Path
) -> None:
    for folder in (tree / "lib", tree):
        os.utime(folder, ns=(1_600_000_000_000_000_000, 1_500_000_000_000_000_000))
        folder.chmod(0o555)
    try:
        report = slimmed_copy(tree, tmp_path / "copy", slim)
    finally:
        for folder in (tree, tree / "lib"):
            folder.chmod(0o755)
    status = [(tmp_path / "copy" / name).stat() for name in (".", "lib")]
    (tmp_path / "copy").chmod(0o755)
    (tmp_path / "copy" / "lib").chmod(0o755)

    assert {(s.st_mode & 0o777, s.st_mtime_ns) for s in status} == {(0o555, 1_500_000_000_000_000_000)}
    assert report.root == str(tmp_path / "copy")


WAITING = """
import sys, time
sys.path += sys.argv[1:-1]
from vllm_variants.fatbin import library, worker
library.verify = lambda *given: time.sleep(60)
worker.main()
"""
FIRST = f"""
import sys
from pathlib import Path
from typing import Any
from vllm_variants.fatbin import workers
worker = workers.command_of({WAITING!r})
workers.command = lambda module: worker
from vllm_variants.cli import main
sys.argv = ["vllm-variants", "slim", sys.argv[1], "--sm", "sm90", "-j", "2", *sys.argv[2:]]
main()
"""


def test_a_worker_without_memory_is_a_sentence(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(tree)
    program = WAITING.replace("lambda *given: time.sleep(60)", "lambda *given: bytes(1 << 60)")
    worker = workers.command_of(program)
    monkeypatch.setattr(workers, "command", lambda module: worker)

    with pytest.raises(ResourceError, match="memory ran out"):
        slim_tree(tree, HOPPER, jobs=2)

    assert contents(tree) == before


def first_process(tree: Path, *words: str) -> subprocess.Popen[str]:
    """`vllm-variants slim` in a process of its own, its workers in the middle of a proof."""
    running = subprocess.Popen(
        [sys.executable, "-c", FIRST, str(tree), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while len(aside(tree.parent)) < 2 + ("-o" in words) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_workers_at_once_leaves_nothing_aside_and_says_what_is_done(
    tree: Path, how: signal.Signals
) -> None:
    before = contents(tree)
    running = first_process(tree, "--in-place")

    running.send_signal(how)
    out, err = running.communicate(timeout=5)

    assert running.returncode == ExitCode.INTERRUPTED
    done, advice = err.split("; ")
    assert done == "interrupted: 0 of 2 libraries are slimmed, the others are as they were"
    assert advice == "run it again to slim the rest\n"
    assert out == ""
    assert contents(tree) == before


def test_a_stopped_copy_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    running = first_process(tree, "-o", str(tmp_path / "copy"))

    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=5)

    assert err == "interrupted: nothing half-done was left behind\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_nothing_outlives_a_first_process_that_is_killed(tree: Path) -> None:
    before = contents(tree)
    running = first_process(tree, "--in-place")
    assert len(aside(tree)) == 2

    running.kill()
    running.communicate(timeout=2)  # ends when nobody holds stdout and stderr any more

    deadline = time.monotonic() + 2
    while aside(tree) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert contents(tree) == before


def stop(done: int, total: int, path: str) -> None:
    """Ctrl-C when the first library is done."""
    raise Interrupted


def test_a_stopped_dry_run_tells_of_no_slimming(tree: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        slim_tree(tree, HOPPER, jobs=1, progress=stop, dry_run=True)
    assert type(caught.value) is Interrupted


def test_a_stop_says_how_many_libraries_are_done(tree: Path) -> None:
    with pytest.raises(Stopped) as caught:
        slim_tree(tree, HOPPER, jobs=1, progress=stop)

    assert (caught.value.slimmed, caught.value.libraries) == (1, 2)


def test_only_own_processes_are_ended() -> None:
    foreign = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    foreign.start()
    try:
        with pytest.raises(Interrupted), closing(answers("for line in sys.stdin: print('{}')")) as ready:
            next(ready)
            raise Interrupted
        assert foreign.is_alive()
    finally:
        foreign.terminate()
        foreign.join()


def answers(program: str) -> Generator[tuple[int, dict[str, object]], None, None]:
    command = [sys.executable, "-u", "-c", f"import os, sys, time\n{program}"]
    return workers.answers(command, [{"n": 1}, {"n": 2}, {"n": 3}], 2)


def test_a_killed_worker_is_a_sentence() -> None:
    with pytest.raises(ResourceError, match="a worker process was killed"):
        list(answers("sys.stdin.readline(); os.kill(os.getpid(), 9)"))


def test_every_request_is_answered_also_in_pieces() -> None:
    program = "[(print(line[:4], end=''), time.sleep(.05), print(line[4:], end='')) for line in sys.stdin]"

    assert sorted(answers(program)) == [(0, {"n": 1}), (1, {"n": 2}), (2, {"n": 3})]


def test_a_worker_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_GRACE", 0.5)
    program = "import signal; signal.signal(15, signal.SIG_IGN); print('{}', flush=True); time.sleep(60)"
    started = time.monotonic()

    with closing(answers(program)) as ready:
        next(ready)

    assert time.monotonic() - started < 10


def test_impatience_leaves_no_worker() -> None:
    """Ctrl-C, and again while the workers clean up behind themselves."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    program = """
import signal
def end(*signalled):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.3)
    os._exit(1)
signal.signal(signal.SIGTERM, end)
print(f'{{"n": {os.getpid()}}}', flush=True)
time.sleep(60)
"""
    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(Interrupted), closing(answers(program)) as ready:
            pids = [answer["n"] for _, answer in (next(ready),)]
            raise Interrupted
    finally:
        signal.signal(signal.SIGINT, before)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(str(pid)), 0)


def test_no_more_processes_is_a_sentence() -> None:
    with pytest.raises(ResourceError, match="another process cannot be started: No such file"):
        list(workers.answers(["/nowhere/python"], [{}, {}], 2))


def test_what_somebody_put_in_place_of_a_library_meanwhile_is_slimmed_as_well(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, proof = tree / "lib" / "libtwo.so", library_module.verify
    other = shutil.copy2(victim, tmp_path / "another.so")

    def overtaken(*given: Any) -> None:
        if Path(other).exists():
            Path(other).replace(victim)
        proof(*given)

    monkeypatch.setattr(library_module, "verify", overtaken)
    report = slim_tree(tree, HOPPER, jobs=1)
    assert report.failed == []
    assert "lib/libtwo.so" in [file.path for file in report.changed]


def before_the_proof(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let somebody act once while the first library is slimmed."""
    proof = library_module.verify

    def proven(*given: Any) -> None:
        monkeypatch.setattr(library_module, "verify", proof)
        act()
        proof(*given)

    monkeypatch.setattr(library_module, "verify", proven)


@pytest.mark.parametrize("removed", [False, True])
def test_another_name_that_somebody_gives_to_a_file_of_theirs_stays_theirs(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    other, theirs = tree / "other.so", tmp_path / "theirs"
    theirs.write_text("theirs")
    (tree / "lib" / "libone.so.1").unlink()
    other.hardlink_to(tree / "lib" / "libtwo.so")
    before_the_proof(monkeypatch, other.unlink if removed else lambda: theirs.replace(other))

    report = slim_tree(tree, HOPPER, jobs=1)

    assert [file.path for file in report.changed] == ["lib/libtwo.so"]
    why = "was replaced or removed by somebody else while the tree was slimmed"
    assert [(file.path, file.kept) for file in report.failed] == [("other.so", why)]
    assert not other.exists() if removed else other.read_text() == "theirs"
    assert aside(tree) == []


def test_names_of_an_old_file_do_not_become_names_of_what_somebody_put_in_place_of_one(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = tree / "lib" / "libtwo.so", tree / "other.so"
    (tree / "lib" / "libone.so.1").unlink()
    other.hardlink_to(first)
    old = other.read_bytes()
    theirs = library(tmp_path / "theirs.so", section([cubin("sm_80", 90_000), cubin("sm_90", 50_000)]))
    new = theirs.read_bytes()
    before_the_proof(monkeypatch, lambda: theirs.replace(first))

    report = slim_tree(tree, HOPPER, jobs=1)

    assert (first.read_bytes(), other.read_bytes()) == (new, old)
    assert [file.path for file in report.failed] == ["lib/libtwo.so"]
    assert slim_tree(tree, HOPPER, jobs=1).failed == []


def test_of_two_slims_of_a_file_with_two_names_both_succeed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "other.so").hardlink_to(tree / "lib" / "libtwo.so")
    ended: list[SlimReport] = []
    before_the_proof(monkeypatch, lambda: ended.append(slim_tree(tree, HOPPER, jobs=1)))

    ended.append(slim_tree(tree, HOPPER, jobs=1))

    assert [report.failed for report in ended] == [[], []]
    assert (tree / "other.so").samefile(tree / "lib" / "libtwo.so")


def test_names_of_one_file_are_one_file_in_a_copy_on_another_file_system(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "other.so").hardlink_to(tree / "lib" / "libtwo.so")
    link = os.link

    def as_between_file_systems(source: Any, target: Any, **options: Any) -> None:
        if Path(source).is_relative_to(tree):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", as_between_file_systems)
    report = slimmed_copy(tree, tmp_path / "out", lambda root: slim_tree(root, HOPPER, jobs=1))
    assert report.saved > 600_000
    assert (tmp_path / "out" / "other.so").samefile(tmp_path / "out" / "lib" / "libtwo.so")
    assert (tmp_path / "out" / "text").stat().st_nlink == 1


def test_a_sparse_file_is_copied_as_one(tree: Path, tmp_path: Path) -> None:
    hollow = tree / "hollow"
    with hollow.open("wb") as file:
        file.write(b"begin")
        file.seek(1 << 30)
        file.write(b"end")
    slimmed_copy(tree, tmp_path / "out", lambda root: slim_tree(root, HOPPER, jobs=1))
    copy = tmp_path / "out" / "hollow"
    assert copy.stat().st_size == hollow.stat().st_size
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(1 << 30)
        assert file.read() == b"end"


def test_a_sparse_library_is_slimmed_to_a_sparse_one(tmp_path: Path) -> None:
    hollow, full = (
        tmp_path / "hollow.so",
        library(tmp_path / "full.so", FATBIN, more={".big": bytes(1 << 26)}),
    )
    with full.open("rb") as content, hollow.open("wb") as file:
        while block := content.read(1 << 16):
            file.write(block) if any(block) else file.seek(len(block), os.SEEK_CUR)
    assert hollow.read_bytes() == full.read_bytes()
    slim_tree(tmp_path, HOPPER, jobs=1)
    assert hollow.read_bytes() == full.read_bytes()
    assert hollow.stat().st_blocks * 512 < 1 << 20 < hollow.stat().st_size


def test_what_is_still_written_to_stays_marked_as_a_leftover(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a killed copy may write for a moment longer; the copy after that one removes it all."""
    left = atomic.name_beside(tmp_path / "out")
    (left / "lib").mkdir(parents=True)
    (left / ".vllm-variants-writer").touch()
    real, late = shutil.rmtree, left / "lib" / "late.so"

    def beside_a_late_writer(path: Path, **options: Any) -> None:
        real(path, **options)
        if Path(path) == late.parent:
            late.parent.mkdir()
            late.touch()

    monkeypatch.setattr(shutil, "rmtree", beside_a_late_writer)
    slimmed_copy(tree, tmp_path / "out", lambda root: slim_tree(root, HOPPER, jobs=1))
    monkeypatch.undo()
    assert left.exists()
    slimmed_copy(tree, tmp_path / "out2", lambda root: slim_tree(root, HOPPER, jobs=1))
    real(tmp_path / "out")
    slimmed_copy(tree, tmp_path / "out", lambda root: slim_tree(root, HOPPER, jobs=1))
    assert not left.exists()
