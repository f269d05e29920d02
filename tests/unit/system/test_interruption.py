"""Ctrl-C and SIGTERM are held back while something begins, and are heard right behind that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vllm_variants.errors import Interrupted
from vllm_variants.system import interruption


def stop(number: int, frame: object) -> None:
    raise Interrupted(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    list(range(9))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_came_is_raised_at_the_end(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Interrupted, match=str(int(number))), interruption.held():
        send(number)
        done.append("begun")
    assert done == ["begun"]
    assert signal.getsignal(number) is stop


def test_what_came_is_raised_where_it_is_released_and_then_at_once() -> None:
    seen = []
    with interruption.held() as held:
        send(signal.SIGTERM)
        try:
            held.release()
        except Interrupted:
            seen.append("released")
        try:
            send(signal.SIGINT)
        except Interrupted:
            seen.append("at once")
    assert seen == ["released", "at once"]


def test_blocks_in_blocks_are_held_until_the_outer_ends() -> None:
    inner = []
    with pytest.raises(Interrupted), interruption.held():
        with interruption.held():
            send(signal.SIGINT)
        inner.append("ended")
    assert inner == ["ended"]
    assert signal.getsignal(signal.SIGINT) is stop


def test_an_error_and_a_signal_are_both_seen() -> None:
    with pytest.raises(Interrupted) as caught, interruption.held():
        send(signal.SIGINT)
        raise OSError("it does not start")
    assert isinstance(caught.value.__context__, OSError)


def test_what_is_ignored_stays_ignored() -> None:
    """As by nohup: a program that is started in the block inherits it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption.held():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        send(signal.SIGINT)


def test_another_thread_is_not_held() -> None:
    failed: list[BaseException] = []

    def other() -> None:
        try:
            with interruption.held():
                assert signal.getsignal(signal.SIGINT) is stop
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert failed == []
