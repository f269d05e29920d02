"""One run of Nix, played by a program that talks as Nix does: its events, its end, its interruption."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from vllm_variants.builders.source import nix_run
from vllm_variants.errors import Interrupted
from vllm_variants.nix.events import Event, LogLine

# Says what it is told, then goes on until SIGINT; then it says 300 kB more, takes a while to stop its
# builders as Nix does, and notes when it ended.
FAKE = """\
import json, signal, sys, time
def say(text):
    sys.stderr.write("@nix " + json.dumps(dict(action="result", id=1, type=101, fields=[text])) + "\\n")
def stop(*_):
    for _ in range(3000):
        say("x" * 60)
    sys.stderr.flush()
    time.sleep(0.5)
    open(sys.argv[1], "w").write(repr(time.monotonic()))
    sys.exit(1)
signal.signal(signal.SIGINT, stop)
for number in range(3000):
    say(f"{number} " + "y" * 60)
sys.stderr.flush()
time.sleep(60)
"""


def interrupt_after(seconds: float) -> None:
    def stop(number: int, frame: object) -> None:
        raise Interrupted

    signal.signal(signal.SIGUSR1, stop)
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1)).start()


def test_a_talking_nix_gets_to_its_clean_up_and_is_stopped_within_two_seconds_of_its_end(
    tmp_path: Path,
) -> None:
    """300 kB are on the way when Ctrl-C comes, and 200 kB follow: nobody takes them but `stop`."""
    said: list[Event] = []

    def take(event: Event) -> None:
        said.append(event)
        if len(said) == 10:  # a screen that takes no more for a while
            interrupt_after(0.2)
            time.sleep(1)

    with pytest.raises(Interrupted):
        nix_run.run([sys.executable, "-c", FAKE, str(tmp_path / "ended")], take, lambda: None)
    stopped = time.monotonic()
    assert (tmp_path / "ended").exists(), "Nix was killed before it had stopped its builders"
    assert stopped - float((tmp_path / "ended").read_text()) < 2
    assert isinstance(said[0], LogLine)


def test_the_end_of_nix_ends_the_run_though_something_of_it_holds_its_output() -> None:
    """As the connection does that ssh keeps open for the next call."""
    started = time.monotonic()
    status = nix_run.run(
        ["sh", "-c", "setsid sleep 20 & echo words >&2; exit 3"], lambda event: None, lambda: None
    )
    assert status == 3
    assert time.monotonic() - started < 5


def test_a_nix_that_closes_its_output_first_is_waited_for_with_ticks() -> None:
    ticks: list[float] = []
    status = nix_run.run(
        ["sh", "-c", "exec 2>&-; sleep 1"], lambda event: None, lambda: ticks.append(time.monotonic())
    )
    assert status == 0
    assert ticks[-1] - ticks[0] > 0.5, "the display stood still"
