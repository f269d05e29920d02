"""The other end of `workers`: a process that answers one request after another, for its parent alone.

Its parent's number is its last argument. Each line on stdin is a request, each line on stdout its answer,
both JSON. It ends when its stdin does. When its parent dies, however that happens, or sends SIGTERM,
whatever it was doing is interrupted, cleans up behind itself, and it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from vllm_variants.errors import Interrupted

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until there are no more, or somebody says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then sends SIGTERM
    signal.signal(signal.SIGTERM, _stop)
    try:
        _die_with(int(sys.argv[-1]))
        for line in sys.stdin:
            sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    except (Interrupted, BrokenPipeError):
        os._exit(1)  # stdout may hold half an answer that nobody reads


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is cleaning up
    raise Interrupted


def _die_with(parent: int) -> None:
    """Let the kernel send SIGTERM when the parent dies; raise `Interrupted` when it is dead already."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise Interrupted


def path_as_text(path: Path) -> str:
    """A path for JSON, whatever bytes it has: each is a character."""
    return os.fsencode(path).decode("latin-1")


def path_of_text(text: str) -> Path:
    """The path that `path_as_text` made a text of."""
    return Path(os.fsdecode(text.encode("latin-1")))
