"""Nothing that the package starts outlives it, however it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[2] / "python"


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_for(condition: object, seconds: float) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


class Parent:
    """A process that starts programs; each line in `pids` is one of them or of what they start."""

    def __init__(self, folder: Path, body: str) -> None:
        self.pids_file = folder / "pids"
        script = folder / "parent.py"
        script.write_text(f"PIDS = {str(self.pids_file)!r}\n" + textwrap.dedent(body))
        self.process = subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(PYTHON)}
        )

    def pids(self, count: int) -> list[int]:
        def started() -> list[str]:
            return self.pids_file.read_text().split() if self.pids_file.exists() else []

        assert wait_for(lambda: len(started()) >= count, 30), f"{started()} of {count} programs started"
        return [int(pid) for pid in started()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Parent]]:
    made: list[Parent] = []
    yield made
    for parent in made:
        parent.kill()
        for word in parent.pids_file.read_text().split() if parent.pids_file.exists() else []:
            with contextlib.suppress(OSError):
                os.kill(int(word), 9)


START = """
    import os, subprocess, sys, time
    from vllm_variants.system import orphans
    shell = f"echo $$ >> {PIDS}; "
    def start(text, **more):
        return subprocess.Popen(["sh", "-c", shell + text], env=orphans.environment(), **more)
"""


def test_kill_9_of_the_parent_ends_its_programs_within_two_seconds(
    tmp_path: Path, started: list[Parent]
) -> None:
    body = (
        START
        + """
    start("sleep 300; true", start_new_session=True)
    start("sleep 300; true")
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    pids = parent.pids(2)
    parent.kill()
    assert wait_for(lambda: not any(map(alive, pids)), 2.0), "a program outlives its parent"


def test_what_a_program_started_in_a_session_of_its_own_is_gone_too(
    tmp_path: Path, started: list[Parent]
) -> None:
    body = (
        START
        + """
    start(f"setsid sh -c 'echo $$ >> {PIDS}; sleep 300; true' & exit 0", start_new_session=True).wait()
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    pids = parent.pids(2)
    parent.kill()
    assert wait_for(lambda: not any(map(alive, pids)), 2.0), "a grandchild is left"


def test_what_lost_the_mark_is_found_by_its_session(tmp_path: Path, started: list[Parent]) -> None:
    body = (
        START
        + """
    start(f"env -i sh -c 'echo $$ >> {PIDS}; sleep 300; true' & sleep 300; true", start_new_session=True)
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    pids = parent.pids(2)
    parent.kill()
    assert wait_for(lambda: not any(map(alive, pids)), 2.0), "a process without the mark is left"


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, started: list[Parent]) -> None:
    body = (
        START
        + """
    start("trap '' TERM INT HUP; while :; do sleep 1; done", start_new_session=True)
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    (pid,) = parent.pids(1)
    time.sleep(0.2)
    parent.kill()
    assert wait_for(lambda: not alive(pid), 2.0)


def test_a_program_has_a_second_to_clean_up(tmp_path: Path, started: list[Parent]) -> None:
    clean = tmp_path / "clean"
    body = (
        START
        + f"""
    start("trap 'sleep 0.3; : > {clean}; exit' TERM; while :; do sleep 0.05; done", start_new_session=True)
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    (pid,) = parent.pids(1)
    time.sleep(0.2)
    parent.kill()
    assert wait_for(lambda: not alive(pid), 2.0)
    assert clean.exists()


def test_others_in_the_session_of_the_parent_are_left_alone(tmp_path: Path, started: list[Parent]) -> None:
    """A program in our own session is ended for its mark, not the person's shell and its other jobs."""
    body = (
        START
        + """
    start("sleep 300; true")
    other = subprocess.Popen(["sh", "-c", shell + "sleep 300; true"])
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    pids = parent.pids(2)
    parent.kill()
    assert wait_for(lambda: sum(map(alive, pids)) == 1, 2.0)
    time.sleep(1.5)
    assert sum(map(alive, pids)) == 1


def test_a_run_within_a_run_is_ended_with_what_it_started(tmp_path: Path, started: list[Parent]) -> None:
    inner = tmp_path / "inner.py"
    inner.write_text(
        "import os, signal, subprocess, time\nfrom vllm_variants.system import orphans\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"print(os.getpid(), file=open({str(tmp_path / 'pids')!r}, 'a'))\n"
        f"subprocess.Popen(['sh', '-c', 'echo $$ >> {tmp_path / 'pids'}; sleep 300; true'],"
        " env=orphans.environment())\ntime.sleep(300)\n"
    )
    body = (
        START
        + f"""
    subprocess.Popen([sys.executable, {str(inner)!r}], env=orphans.environment(), start_new_session=True)
    time.sleep(300)
    """
    )
    parent = Parent(tmp_path, body)
    started.append(parent)
    pids = parent.pids(2)
    parent.kill()
    assert wait_for(lambda: not any(map(alive, pids)), 4.0), "2 seconds for each run"


def test_an_ordinary_end_leaves_what_was_left_on_purpose(tmp_path: Path, started: list[Parent]) -> None:
    """Such as the connection that ssh keeps for the next call."""
    parent = Parent(tmp_path, START + '\n    start("sleep 300; true", start_new_session=True)\n')
    started.append(parent)
    (pid,) = parent.pids(1)
    assert parent.process.wait(10) == 0
    time.sleep(0.5)
    assert alive(pid)
