"""Programs that are run: their output is kept or passed on, and they can be ended, however they take it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vllm_variants.errors import Interrupted
from vllm_variants.fatbin import workers
from vllm_variants.system import process

TALKER = """
clean() {{ sleep 0.2; : > {clean}; exit; }}
trap clean INT
echo ready
while :; do head -c 65536 /dev/zero; done
"""


def start(text: str) -> subprocess.Popen[bytes]:
    command = ["sh", "-c", text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def runs(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected does not."""
    state = Path("/proc", str(pid), "stat")
    return state.exists() and " Z " not in state.read_text()


def interrupted_after(seconds: float) -> threading.Timer:
    def stop(number: int, frame: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    return timer


def test_one_that_talks_gets_to_its_clean_up(tmp_path: Path) -> None:
    """Its pipe is full, and it hears of the end only when somebody reads on."""
    talker = start(TALKER.format(clean=tmp_path / "clean"))
    assert talker.stdout
    assert talker.stdout.read(5) == b"ready"
    time.sleep(0.3)  # the pipe is full now
    started = time.monotonic()
    process.stop(talker, output=talker.stdout.fileno())
    assert time.monotonic() - started < 2
    assert (tmp_path / "clean").exists()
    talker.stdout.close()


def test_one_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    deaf = start("trap '' INT; echo ready; while :; do sleep 0.1; done")
    assert deaf.stdout
    assert deaf.stdout.readline() == b"ready\n"
    started = time.monotonic()
    process.stop(deaf, output=deaf.stdout.fileno(), grace=0.5)
    assert deaf.returncode == -signal.SIGKILL
    assert 0.5 <= time.monotonic() - started < 0.5 + 2 * process.GONE
    deaf.stdout.close()


def test_one_that_not_even_sigkill_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits in a driver for a device: no wait is without a limit."""
    stuck = start("echo ready; sleep 60")
    assert stuck.stdout
    assert stuck.stdout.readline() == b"ready\n"
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda group, number: None)
        started = time.monotonic()
        process.stop(stuck, output=stuck.stdout.fileno(), grace=0.2)
        assert time.monotonic() - started < 0.2 + 2 * process.GONE + 0.5
    assert stuck.poll() is None
    os.killpg(stuck.pid, signal.SIGKILL)
    stuck.wait(10)
    stuck.stdout.close()


def test_what_it_started_is_ended_too(tmp_path: Path) -> None:
    parent = start(f"trap 'exit' INT; sh -c 'trap \"\" INT; echo $$ > {tmp_path}/pid; sleep 60; :' & wait")
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    process.stop(parent)
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 2
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(pid)
    assert parent.stdout
    parent.stdout.close()


def test_a_kill_ends_a_program_and_what_it_started_at_once(tmp_path: Path) -> None:
    parent = start(f"trap '' INT TERM; sh -c 'echo $$ > {tmp_path}/pid; sleep 60; :' & wait")
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    assert process.kill(parent)
    assert parent.returncode == -signal.SIGKILL
    assert not runs(int((tmp_path / "pid").read_text()))
    assert parent.stdout
    parent.stdout.close()


def test_a_kill_says_that_a_program_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = start("sleep 60")
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda group, number: None)
        started = time.monotonic()
        assert not process.kill(stuck, seconds=0.2)
        assert time.monotonic() - started < 1
    assert process.kill(stuck)
    assert stuck.stdout
    stuck.stdout.close()


# ── capture ──


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def test_what_is_captured_is_status_and_text_and_input_is_empty() -> None:
    completed = process.capture(shell("cat; printf 'a\\377b'; echo words >&2; exit 3"))
    assert completed == process.CompletedCommand(3, "a�b", "words\n")
    assert completed.output == "a�bwords\n"


def test_a_captured_program_reads_its_text_in_its_folder(tmp_path: Path) -> None:
    text = "long " * 100_000
    completed = process.capture(shell("pwd; wc -c"), text=text, folder=tmp_path)
    assert completed.stdout.split() == [str(tmp_path), str(len(text))]


def test_a_captured_program_sees_no_variable_but_those_given() -> None:
    completed = process.capture(["/bin/sh", "-c", "echo ${HOME:-none} $OURS"], env={"OURS": "ours"})
    assert completed.stdout == "none ours\n"


def test_a_program_that_cannot_be_started_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        process.capture([tmp_path / "none"])


def test_a_captured_program_is_ended_when_its_time_is_up() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"sleep did not end within 0\.3 seconds"):
        process.capture(["sleep", "30"], seconds=0.3)
    assert time.monotonic() - started < 3


def test_the_end_of_a_captured_program_counts_though_something_of_it_holds_its_output() -> None:
    """As the connection does that ssh keeps open for the next call."""
    started = time.monotonic()
    completed = process.capture(shell("setsid sleep 20 & echo words; exit 3"))
    assert (completed.status, completed.stdout) == (3, "words\n")
    assert time.monotonic() - started < 5


def test_an_interruption_ends_the_program_that_is_captured() -> None:
    timer = interrupted_after(0.3)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        process.capture(["sleep", "30"])
    timer.join()
    assert time.monotonic() - started < 3


def test_another_thread_can_end_what_is_captured() -> None:
    ended: list[int] = []
    capturing = threading.Thread(target=lambda: ended.append(process.capture(["sleep", "30"]).status))
    capturing.start()
    time.sleep(0.3)
    process.end_captured()
    capturing.join(5)
    assert ended == [-signal.SIGTERM]


def test_several_programs_end_in_the_order_of_their_commands() -> None:
    commands = [shell("sleep 0.2; echo slow"), shell("echo quick; echo words >&2; exit 3")]
    assert process.capture_all(commands, 2) == [
        process.CompletedCommand(0, "slow\n", ""),
        process.CompletedCommand(3, "quick\n", "words\n"),
    ]


def test_no_more_run_at_once_than_allowed(tmp_path: Path) -> None:
    count = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l; sleep 0.1; rm {tmp_path}/$$"
    most = max(int(completed.stdout) for completed in process.capture_all([shell(count)] * 7, 3))
    assert most <= 3


def test_much_output_blocks_nobody() -> None:
    (completed,) = process.capture_all([shell("head -c 1000000 /dev/zero | tr '\\0' x")], 1)
    assert len(completed.stdout) == 1_000_000


def test_an_interruption_ends_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    timer = interrupted_after(0.3)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        process.capture_all([["sleep", "30"], shell(f"touch {tmp_path}/never")], 1)
    timer.join()
    assert time.monotonic() - started < 10
    assert list(tmp_path.iterdir()) == []


# ── show ──


def test_what_is_shown_goes_to_stderr_and_its_end_is_kept(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    text = "echo out; printf '\\033[1mbold\\033[0m\\n' >&2; echo ' + hidden'; printf ' +'; exit 3"
    completed = process.show(shell(text), hide=r" \+ .+")
    assert capfdbinary.readouterr().err == b"out\n\x1b[1mbold\x1b[0m\n +"
    assert completed == process.CompletedCommand(3, "out\nbold\n + hidden\n +", "")


def test_an_interruption_lets_a_talking_program_clean_up(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    timer = interrupted_after(0.5)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        process.show(["sh", "-c", TALKER.format(clean=tmp_path / "clean")])
    timer.join()
    assert time.monotonic() - started < 4
    assert (tmp_path / "clean").exists()


# ── stream ──

# Prints lines, then goes on until SIGINT; then it prints 300 kB more, takes a while to stop what it
# started, as Nix does, and notes when it ended.
NIX = """\
import signal, sys, time
def stop(*_):
    for _ in range(3000):
        sys.stderr.write("x" * 99 + "\\n")
    sys.stderr.flush()
    time.sleep(0.5)
    open(sys.argv[1], "w").write(repr(time.monotonic()))
    sys.exit(1)
signal.signal(signal.SIGINT, stop)
for number in range(3000):
    sys.stderr.write(f"{number} " + "y" * 99 + "\\n")
sys.stderr.flush()
time.sleep(60)
"""


def test_a_talking_program_gets_to_its_clean_up_and_is_stopped_within_two_seconds_of_its_end(
    tmp_path: Path,
) -> None:
    """300 kB are on the way when Ctrl-C comes, and 300 kB follow: nobody takes them but `stop`."""
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if len(lines) == 10:  # a screen that takes no more for a while
            interrupted_after(0.2)
            time.sleep(1)

    with pytest.raises(Interrupted):
        process.stream([sys.executable, "-c", NIX, str(tmp_path / "ended")], take, lambda: None)
    stopped = time.monotonic()
    assert (tmp_path / "ended").exists(), "it was killed before it had stopped what it started"
    assert stopped - float((tmp_path / "ended").read_text()) < 2
    assert lines[0] == "0 " + "y" * 99


def test_the_end_of_a_program_ends_its_stream_though_something_of_it_holds_its_output() -> None:
    """As the connection does that ssh keeps open for the next call."""
    started = time.monotonic()
    lines: list[str] = []
    status = process.stream(
        shell("setsid sleep 20 & echo dropped; printf 'words\\nrest' >&2; exit 3"), lines.append, lambda: None
    )
    assert (status, lines) == (3, ["words", "rest"])
    assert time.monotonic() - started < 5


def test_a_program_that_closes_its_output_first_is_waited_for_with_ticks() -> None:
    ticks: list[float] = []
    status = process.stream(
        shell("exec 2>&-; sleep 1"), lambda line: None, lambda: ticks.append(time.monotonic())
    )
    assert status == 0
    assert ticks[-1] - ticks[0] > 0.5, "the display stood still"


def test_lines_of_stdout_come_where_they_are_asked_for() -> None:
    lines: list[str] = []
    process.stream(shell("echo out; echo err >&2"), lines.append, lambda: None, stdout=True)
    assert lines == ["out", "err"]


# ── an interruption while a program starts ──


class Interrupting(subprocess.Popen[bytes]):
    """Ctrl-C comes when the program runs already, before anybody knows it."""

    started: ClassVar[list[int]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.args == SLEEPS:
            self.started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)
            list(range(9))  # Python calls the handler here


SLEEPS = ["sleep", "30"]


@pytest.mark.parametrize(
    "run",
    [
        lambda: process.show(SLEEPS),
        lambda: process.stream(SLEEPS, lambda line: None, lambda: None),
        lambda: process.capture(SLEEPS),
        lambda: process.capture_all([SLEEPS], 2),
        lambda: list(workers.answers(SLEEPS, [{}, {}], 2)),
    ],
    ids=["show", "stream", "capture", "capture_all", "workers"],
)
def test_no_program_goes_on_that_ctrl_c_met_at_its_start(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]
) -> None:
    """It would write into the folder that is being removed."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    monkeypatch.setattr(subprocess, "Popen", Interrupting)
    Interrupting.started.clear()
    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(Interrupted):
            run()
        assert signal.getsignal(signal.SIGINT) is stop
        assert len(Interrupting.started) == 1
        assert not runs(Interrupting.started[0])
    finally:
        signal.signal(signal.SIGINT, before)
        for pid in Interrupting.started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# ── one seam ──

STARTERS = {
    "system/process.py",
    "system/orphans.py",  # the watcher itself
    "cli/test.py",  # becomes pytest
    "fatbin/workers.py",  # end with their stdin
    "fatbin/native/queue.py",  # asks the kernel for each one's CPU time and memory; they die with this one
    "verify/check_process.py",  # talks with what `start` gives it
}


STARTING = re.compile(r"^\s*(import|from) subprocess\b|\bos\.(system|exec|spawn|posix_spawn)", re.MULTILINE)


def test_no_other_module_starts_programs() -> None:
    """The GPU checks are programs of their own, run by a result's interpreter."""
    package = Path(process.__file__).parents[1]
    starters = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if STARTING.search(path.read_text()) and "checks" not in path.relative_to(package).parts
    }
    assert starters <= STARTERS
