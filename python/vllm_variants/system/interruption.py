"""Hold Ctrl-C and SIGTERM back for a moment: while a thing begins that something must end again.

A handler's exception may come between any two instructions. Where it comes after a program was started
and before anybody knows it, nobody ends that program: it goes on, and writes into what is cleaned up.

    with interruption.held() as held:
        process = start()
        try:
            held.release()  # what came meanwhile is raised here, where it is handled
            …
        finally:
            stop(process)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Held:
    """Signals that wait until `release`, or the end of the block; see `held`."""

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[int] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in _NUMBERS}
            # Not those that the system handles: a program that is started inherits what is ignored.
            self._handlers = {number: handler for number, handler in found.items() if callable(handler)}
            _set(dict.fromkeys(self._handlers, self._note))
        return self

    def release(self) -> None:
        """Give the signals back to their handlers; one that came meanwhile is handled now."""
        handlers, self._handlers = self._handlers, {}
        _set(handlers)
        if self._came:
            number, self._came = self._came[0], []
            signal.raise_signal(number)

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)


def held() -> Held:
    """A block in which the handlers of Ctrl-C and SIGTERM are not called; they are at its end.

    In another thread than the main one, which alone has signals handled, it does nothing.
    """
    return Held()


def _set(handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]]) -> None:
    """Set handlers of signals, all or none: no signal is handled in between."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
