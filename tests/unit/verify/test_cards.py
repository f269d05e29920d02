"""Cards that a check has to itself: locks that hold between processes, and never for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_variants.errors import MissingError
from vllm_variants.machine import gpus
from vllm_variants.machine.gpus import Gpu, Machine
from vllm_variants.model.capability import Capability
from vllm_variants.verify import cards

HOLDER = """
import sys
from vllm_variants.machine.gpus import Gpu
from vllm_variants.model.capability import Capability
from vllm_variants.verify import cards
card = Gpu(0, "NVIDIA H100", Capability(9, 0), None, sys.argv[1])
with cards.reserved([card], 1):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Gpu, Gpu]:
    """Two cards, and a folder of their own for the locks."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(cards.tempfile, "tempdir", str(tmp_path))
    card = Gpu(0, "NVIDIA H100", Capability(9, 0), None, "GPU-a")
    return card, Gpu(1, card.name, card.capability, None, "GPU-b")


@pytest.fixture
def holder(two: tuple[Gpu, Gpu]) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the first card."""
    command = [sys.executable, "-c", HOLDER, two[0].uuid]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_check_of_one_card_takes_any_that_is_free(
    two: tuple[Gpu, Gpu], holder: subprocess.Popen[str]
) -> None:
    with cards.reserved(two, 1) as own:
        assert own == (two[1],)


def test_a_check_of_two_waits_for_both_and_a_dead_process_gives_its_card_back(
    two: tuple[Gpu, Gpu], holder: subprocess.Popen[str]
) -> None:
    held = threading.Event()

    def wait() -> None:
        with cards.reserved(two, 2):
            held.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert not held.wait(0.3)
    holder.kill()
    assert held.wait(10)
    waiting.join(10)


def test_two_that_want_both_in_any_order_never_wait_for_each_other(two: tuple[Gpu, Gpu]) -> None:
    together, counted = [0], threading.Lock()

    def work(order: tuple[Gpu, Gpu]) -> None:
        for turn in range(40):
            with cards.reserved(order, 2 if turn % 3 else 1, turn) as own:
                if len(own) == 2:
                    with counted:
                        together[0] += 1
                    assert together[0] == 1
                    time.sleep(0.001)
                    together[0] -= 1

    threads = [threading.Thread(target=work, args=(two[::step],), daemon=True) for step in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_lost_card_is_named(two: tuple[Gpu, Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "machine", lambda: Machine("x86_64-linux", "580.82.07", two[:1]))
    cards.require(two[:1], "while this check ran")
    with pytest.raises(MissingError) as caught:
        cards.require(two, "while this check ran")
    assert caught.value.message == (
        "GPU 1 (NVIDIA H100, GPU-b) was lost while this check ran: the driver no longer lists it"
    )
