"""Programs that are run: what they say is kept, and they can be ended, however they take it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from vllm_variants.errors import Interrupted
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
    process.stop(talker, talk=talker.stdout.fileno())
    assert time.monotonic() - started < 2
    assert (tmp_path / "clean").exists()
    talker.stdout.close()


def test_one_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    deaf = start("trap '' INT; echo ready; while :; do sleep 0.1; done")
    assert deaf.stdout
    assert deaf.stdout.readline() == b"ready\n"
    started = time.monotonic()
    process.stop(deaf, talk=deaf.stdout.fileno(), grace=0.5)
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
        process.stop(stuck, talk=stuck.stdout.fileno(), grace=0.2)
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
    state = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    deadline = time.monotonic() + 2
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not state.exists() or " Z " in state.read_text()
    assert parent.stdout
    parent.stdout.close()


def test_an_interruption_ends_the_program_that_is_asked() -> None:
    timer = interrupted_after(0.3)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        process.ask(["sleep", "30"])
    timer.join()
    assert time.monotonic() - started < 3


def test_an_interruption_lets_a_talking_program_clean_up(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    timer = interrupted_after(0.5)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        process.run(["sh", "-c", TALKER.format(clean=tmp_path / "clean")])
    timer.join()
    assert time.monotonic() - started < 4
    assert (tmp_path / "clean").exists()


def test_another_thread_can_end_what_is_asked() -> None:
    ended: list[int] = []
    asking = threading.Thread(target=lambda: ended.append(process.ask(["sleep", "30"]).returncode))
    asking.start()
    time.sleep(0.3)
    process.end_asked()
    asking.join(5)
    assert ended == [-signal.SIGTERM]


def test_an_answer_is_status_and_text_and_input_is_empty() -> None:
    answer = process.ask(["sh", "-c", "cat; printf 'a\\377b'; echo words >&2; exit 3"])
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, "a�b", "words\n")
