"""Programs that end when we do, however we end: the kernel kills them, also after kill -9 of us."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_us() -> Callable[[], None]:
    """What a child must call before it becomes another program: a `preexec_fn` for `subprocess`.

    The kernel then kills it when the thread that started it ends. Does nothing but in Linux.
    """
    parent, prctl = os.getpid(), getattr(ctypes.CDLL(None), "prctl", None)

    def before_exec() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:  # it ended between the fork and the line above
                os._exit(1)

    return before_exec
