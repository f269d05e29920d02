"""A tree gives the same whether this process reads its libraries or several others do."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lz4
import pytest
import toml
import zstandard
from making import cubin, library, ptx, section
from sample import CODE, HOPPER

from vllm_variants.audit import audit_tree
from vllm_variants.audit.cache import Cache
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.audit.targets import processes, trees
from vllm_variants.audit.targets.trees import read_tree
from vllm_variants.errors import Interrupted
from vllm_variants.fatbin import workers
from vllm_variants.machine import memory

ODD = os.fsdecode(b"lib/\xff\xfe \xc3\xa9.so")


def make(root: Path) -> Path:
    """A tree with libraries of all sorts, and files that are none."""
    (root / "vllm").mkdir(parents=True)
    (root / "lib").mkdir()
    library(root / "vllm" / "_C.abi3.so", CODE)
    library(root / "lib" / "large.so", section([cubin("sm_90", 400_000)], [ptx("compute_80", 3000)]))
    library(root / ODD, section([cubin("sm_75", 900)]), more={".ldata": section([cubin("sm_80", 700)])})
    library(root / "lib" / "gone.so", CODE)
    made = library(root / "lib" / "cut.so", CODE).read_bytes()
    (root / "lib" / "cut.so").write_bytes(made[: len(made) // 2])
    spoilt = section([cubin("sm_90", 5000)]).replace(b"\x50\xed\x55\xba", b"\x50\xed\x55\xbb")
    library(root / "lib" / "spoilt.so", spoilt)
    (root / "lib" / "begins.so").write_bytes(b"\x7fELF")
    (root / "lib" / "text.so").write_text("no library" * 999)
    (root / "lib" / "broken.whl").write_bytes(b"PK\x03\x04broken" * 99)
    with zipfile.ZipFile(root / "lib" / "made.whl", "w") as archive:
        archive.writestr("a/_C.so", made)
    return root


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also these libraries are worth a process."""
    monkeypatch.setattr(processes, "_WORTH", 0)
    monkeypatch.setattr(processes, "_BATCH", 100_000)
    monkeypatch.setattr(memory, "processors", lambda: 3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Any]]:
    """The requests to other processes, in the order in which they were answered."""
    answered: list[Sequence[Any]] = []
    answers = workers.answers

    def noting(program: Sequence[str], requests: Sequence[Any], *rest: Any) -> Any:
        for index, answer in answers(program, requests, *rest):
            answered.append(requests[index]["files"])
            yield index, answer

    monkeypatch.setattr(workers, "answers", noting)
    return answered


def packed(libraries: Sequence[LibrarySummary]) -> list[Any]:
    return [(summary.path, summary.as_json()) for summary in libraries]


def read(root: Path, monkeypatch: pytest.MonkeyPatch, *, most: int, above: str = "") -> list[Any]:
    """What `most` processes read in a new tree, of which one file goes before it is read."""
    make(root)
    listed = trees.regular_files

    def then_removed(*arguments: Any) -> Any:
        files = listed(*arguments)
        (root / "lib" / "gone.so").unlink()
        return files

    with monkeypatch.context() as patched:
        patched.setattr(trees, "regular_files", then_removed)
        patched.setattr(processes, "is_library", lambda path: path.endswith(".so"))
        patched.setattr(processes, "_MOST", most)
        found = packed(read_tree(root, lambda name: None, above))
    return [(path, [str(each).replace(str(root), "ROOT") for each in rest]) for path, rest in found]


@pytest.mark.parametrize("above", ["", "tree/"])
def test_several_processes_read_what_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]], above: str
) -> None:
    alone = read(tmp_path / "alone", monkeypatch, most=1, above=above)
    assert not asked
    together = read(tmp_path / "together", monkeypatch, most=3, above=above)
    assert sum(map(len, asked)) == 8 and len(asked) > 2, "libraries alone, some at a time"
    assert together == alone
    problems = {path.removeprefix(above): rest[2] for path, rest in together if rest[2]}
    assert [*problems] == [
        f"lib/{name}" for name in ("begins.so", "broken.whl", "cut.so", "gone.so", "spoilt.so")
    ]
    assert problems["lib/gone.so"] == "cannot be read: No such file or directory"
    assert "ROOT/lib/spoilt.so: no fat binary where one must be" in problems["lib/spoilt.so"]
    assert {above + ODD, above + "lib/made.whl/a/_C.so"} <= {path for path, _ in together}


def test_a_report_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]]
) -> None:
    make(tmp_path / "tree")
    together = audit_tree(tmp_path / "tree", HOPPER)
    assert asked
    monkeypatch.setattr(processes, "_MOST", 1)
    alone = audit_tree(tmp_path / "tree", HOPPER)
    assert (together.as_dict(), together) == (alone.as_dict(), alone)


def test_each_name_is_told_once_and_what_takes_longest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    read_tree(make(tmp_path / "tree"), told.append)
    assert told[0] == "vllm/_C.abi3.so", "its kernels' names are read"
    assert told[1] == "lib/large.so"
    several, told = told, []
    monkeypatch.setattr(processes, "_MOST", 1)
    read_tree(tmp_path / "tree", told.append)
    assert sorted(several) == sorted(told) and len(told) == len({*told})


def test_what_other_processes_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vllm_variants.audit.cache._SETTLING", -1.0)
    tree = make(tmp_path / "tree")
    first = read_tree(tree, lambda name: None, "", Cache(tree))
    assert asked
    asked.clear()
    told: list[str] = []
    assert read_tree(tree, told.append, "", Cache(tree)) == first
    again = {file for batch in asked for _, file in batch}
    assert {"vllm/_C.abi3.so", "lib/large.so"}.isdisjoint({*told, *again})


@pytest.mark.parametrize(
    "program",
    [
        ["/nowhere/python"],
        [sys.executable, "-c", "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)"],
        [sys.executable, "-c", "raise MemoryError"],
    ],
    ids=["cannot be started", "is killed", "fails"],
)
def test_where_no_other_process_answers_this_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: list[str]
) -> None:
    tree = make(tmp_path / "tree")
    together = packed(read_tree(tree, lambda name: None))
    monkeypatch.setattr(workers, "command", lambda module: program)
    assert packed(read_tree(tree, lambda name: None)) == together


def test_where_other_processes_cannot_be_waited_for_this_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as fs.epoll.max_user_watches has it

    tree = make(tmp_path / "tree")
    together = packed(read_tree(tree, lambda name: None))
    before = children()
    monkeypatch.setattr(selectors.DefaultSelector, "register", full)
    assert packed(read_tree(tree, lambda name: None)) == together
    assert children() == before


@pytest.mark.parametrize(("name", "value"), [("_WORTH", 1 << 30), ("_BATCH", 1 << 30), ("_MOST", 1)])
def test_what_is_soon_read_is_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]], name: str, value: int
) -> None:
    monkeypatch.setattr(processes, name, value)
    assert read_tree(make(tmp_path / "tree"), lambda name: None)
    assert not asked


def test_one_large_library_is_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]]
) -> None:
    monkeypatch.setattr(processes, "_WORTH", 100_000)
    library(tmp_path / "large.so", section([cubin("sm_90", 400_000)]))
    library(tmp_path / "small.so", section([cubin("sm_90", 40_000)]))
    (tmp_path / "weights").write_bytes(bytes(900_000))
    read_tree(tmp_path, lambda name: None)
    assert not asked
    library(tmp_path / "another.so", section([cubin("sm_90", 400_000)]))
    read_tree(tmp_path, lambda name: None)
    assert asked


@pytest.mark.parametrize(("folder", "name"), [("lib", "it.so"), ("vllm", "_C.abi3.so")])
def test_a_library_whose_kernels_names_are_read_is_worth_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]], folder: str, name: str
) -> None:
    monkeypatch.setattr(processes, "_WORTH", 1_000_000)
    for parent in ("a", "b"):
        (tmp_path / parent / folder).mkdir(parents=True)
        library(tmp_path / parent / folder / name, section([cubin("sm_90", 400_000)]))
    read_tree(tmp_path, lambda name: None)
    assert bool(asked) == (folder == "vllm")


def test_a_container_with_one_processor_has_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Sequence[Any]]
) -> None:
    monkeypatch.setattr(memory, "processors", lambda: 1)
    read_tree(make(tmp_path / "tree"), lambda name: None)
    assert not asked


def children() -> list[str]:
    """The processes that this one has started and that run."""
    return (Path("/proc/self/task") / str(os.getpid()) / "children").read_text().split()


def test_an_interruption_leaves_no_process(tmp_path: Path) -> None:
    before, told = children(), []

    def stop(name: str) -> None:
        told.append(name)
        if len(told) == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        read_tree(make(tmp_path / "tree"), stop)
    assert children() == before


APART = """
import sys
from vllm_variants.fatbin import workers
requests = {"audit.targets.reader": {"above": "", "files": []}, "fatbin.worker": {"path": "/"}}
for module, request in requests.items():
    print(*workers.answers(workers.command(f"vllm_variants.{module}"), [request], 1))
"""


def test_processes_start_where_each_package_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = [Path(processes.__file__).parents[3]]
    for package in (zstandard, lz4, toml):
        folders.append(tmp_path / package.__name__)
        folders[-1].mkdir()
        assert package.__file__
        (folders[-1] / package.__name__).symlink_to(Path(package.__file__).parent)
    code = f"import sys; sys.path += {[*map(str, folders)]!r}\n{APART}"  # as Nix has them
    told = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("(0, {'files': []})\n(0, {")


SLEEPING = """
import sys, time
sys.path += sys.argv[1:-1]
from vllm_variants.audit.targets import reader
reader.read_file = lambda *given: time.sleep(60)
reader.main()
"""
AUDIT = f"""
import sys
from vllm_variants.audit.targets import processes
from vllm_variants.fatbin import workers
processes._WORTH, processes._BATCH = 0, 1
processes.memory.processors = lambda: 2
program = workers.command_of({SLEEPING!r})
workers.command = lambda module: program
from vllm_variants.cli import main
sys.argv = ["vllm-variants", "audit", sys.argv[1], "--sm", "sm90", "--fresh"]
main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_an_audit_that_is_stopped(tmp_path: Path, how: signal.Signals) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", AUDIT, str(make(tmp_path / "tree"))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    listing = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    deadline = time.monotonic() + 30
    while len(started := listing.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # until they have begun to read
    assert len(started) == 2

    running.send_signal(how)
    _, said = running.communicate(timeout=10)

    assert running.returncode == (-9 if how == signal.SIGKILL else 130), said
    deadline = time.monotonic() + 5
    while any(map(runs, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, started))


def runs(pid: str) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
