"""Several programs at once, and none left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from vllm_variants.errors import Interrupted
from vllm_variants.system.concurrent import run_all


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def test_ends_come_in_the_order_of_the_commands() -> None:
    ended = run_all([shell("sleep 0.2; echo slow"), shell("echo quick; echo words >&2; exit 3")], 2)
    assert [(end.status, end.out, end.err) for end in ended] == [(0, "slow\n", ""), (3, "quick\n", "words\n")]


def test_no_more_run_at_once_than_allowed(tmp_path: Path) -> None:
    count = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l; sleep 0.1; rm {tmp_path}/$$"
    most = max(int(end.out) for end in run_all([shell(count)] * 7, 3))
    assert most <= 3


def test_much_output_blocks_nobody() -> None:
    (end,) = run_all([shell("head -c 1000000 /dev/zero | tr '\\0' x")], 1)
    assert len(end.out) == 1_000_000


def test_an_interruption_ends_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    def stop(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        started = time.monotonic()
        with pytest.raises(Interrupted):
            run_all([["sleep", "30"], shell(f"touch {tmp_path}/never")], 1)
        assert time.monotonic() - started < 10
        assert list(tmp_path.iterdir()) == []
    finally:
        signal.signal(signal.SIGUSR1, before)
