"""The fault suite's own judgement: it sees what is broken, and finds nothing in what is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from commands import Command, Ended, Strike
from invariants import ended_well, entry_whole, equal, old_or_new, one_inode, snapshot


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "one.so").write_bytes(b"old")
    (root / "lib" / "link.so").symlink_to("one.so")
    (root / "notes").write_text("mine")
    return root


def slimmed(tree: Path) -> None:
    (tree / "lib" / "one.so").write_bytes(b"new")


def test_old_and_new_are_whole(tree: Path) -> None:
    before = snapshot(tree)
    slimmed(tree)
    reference = snapshot(tree)

    for state in (before, reference):
        assert old_or_new(before, state, reference, leftovers=False) == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda tree: (tree / "lib" / "one.so").write_bytes(b"ol"),
        lambda tree: (tree / "lib" / "one.so").unlink(),
        lambda tree: (tree / "lib" / "one.so").chmod(0o600),
        lambda tree: (tree / "notes").unlink(),
        lambda tree: (tree / "notes").write_text("yours"),
        lambda tree: (tree / "lib" / ".one.so.slimming").write_bytes(b""),
        lambda tree: [(tree / "lib" / "link.so").unlink(), (tree / "lib" / "link.so").symlink_to("two.so")],
    ],
)
def test_harm_is_seen(tree: Path, harm: Callable[[Path], object]) -> None:
    (tree / "lib" / "one.so").chmod(0o644)
    before = snapshot(tree)
    slimmed(tree)
    reference = snapshot(tree)

    harm(tree)

    assert len(old_or_new(before, snapshot(tree), reference, leftovers=False)) == 1
    assert equal(reference, snapshot(tree), "the tree")


def test_only_names_of_ours_may_be_left_after_a_kill(tree: Path) -> None:
    before = snapshot(tree)
    (tree / "lib" / ".one.so.0123456789ab.vllm-variants-new").write_bytes(b"")
    (tree / "lib" / "core").write_bytes(b"")

    assert old_or_new(before, snapshot(tree), {}, leftovers=True) == ["lib/core was left there"]


def test_an_unfinished_run_is_not_a_finished_one(tree: Path) -> None:
    before = snapshot(tree)
    slimmed(tree)
    reference = snapshot(tree)

    assert old_or_new(before, before, reference, leftovers=False, finished=True)


def test_names_of_one_file_are_told_from_copies(tree: Path) -> None:
    os.link(tree / "notes", tree / "same")
    (tree / "copy").write_text("mine")
    found = snapshot(tree)

    assert one_inode(found, [("notes", "same")]) == []
    assert one_inode(found, [("notes", "copy")])


def test_an_entry_without_manifest_or_python_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "share" / "vllm-variants").mkdir(parents=True)
    manifest = tmp_path / "share" / "vllm-variants" / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1}))
    python = tmp_path / "bin" / "python"
    python.write_text("")
    python.chmod(0o755)
    whole = snapshot(tmp_path)
    assert entry_whole(tmp_path, whole, ()) == []

    python.chmod(0o644)
    manifest.write_text("{")

    assert len(entry_whole(tmp_path, whole, ())) == 4


def ended(status: int | None, err: str = "error: it is so", sent: list[int] | None = None) -> Ended:
    return Ended("slim", status, "", err, 0.1, sent or [])


def test_ends_are_judged() -> None:
    for good in (ended(0, ""), ended(1), ended(130), ended(130, "", [2]), ended(-9, "", [9])):
        assert ended_well(good) == []
    for bad in (
        ended(None),
        ended(77),
        ended(-7, ""),
        ended(1, "Traceback (most …"),
        ended(1, ""),
        ended(130, ""),
    ):
        assert ended_well(bad)
    assert ended_well(ended(1), succeeds=True)


def command(tmp_path: Path, code: str, strike: Strike | None = None) -> Ended:
    shim = commands.build_shim(tmp_path / "shim.so")
    if not shim:
        pytest.skip("no C compiler for the shim")
    program = (sys.executable, "-c", code)
    area = tmp_path / "area"
    area.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"]}
    logs = tmp_path / "logs"
    return Command([], env, logs, cwd=area, shim=shim, under=area, strike=strike, program=program).finish(20)


RENAMES = "import os; open('a', 'w').close(); os.rename('a', 'b'); os.rename('b', 'c')"


def test_the_shim_counts_and_strikes_at_the_exact_call(tmp_path: Path) -> None:
    assert (counted := command(tmp_path, RENAMES)).calls == 3
    assert counted.struck == ""
    (tmp_path / "area" / "c").unlink()

    killed = command(tmp_path, RENAMES, Strike("signal:9:self", 3))

    assert (killed.status, killed.struck) == (-signal.SIGKILL, "call 3: rename c")
    assert [path.name for path in (tmp_path / "area").iterdir()] == ["b"]


def test_the_shim_refuses_calls_as_a_full_disk_does(tmp_path: Path) -> None:
    code = """
import os
for number in range(4):
    try:
        os.mkdir(str(number))
        print(number)
    except OSError as error:
        print(error.errno)
"""

    assert command(tmp_path, code, Strike("errno:28", 2)).out.split() == ["0", "28", "2", "3"]
    for made in (tmp_path / "area").iterdir():
        made.rmdir()
    assert command(tmp_path, code, Strike("errno:28:onwards", 2)).out.split() == ["0", "28", "28", "28"]


def test_a_process_that_stays_behind_is_found_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "GRACE", 0.3)
    code = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"

    ended = command(tmp_path, code)

    assert len(ended.left) == 1
    assert "sleep 600" in ended.left[0]
    gone = subprocess.run(
        ["ps", "-o", "stat=", "-p", ended.out.strip()], capture_output=True, text=True, check=False
    )
    assert gone.stdout.strip()[:1] in ("", "Z")
