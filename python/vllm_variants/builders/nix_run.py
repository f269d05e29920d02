"""One `nix build` of many derivations: its events read as they come, its end, its interruption."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from vllm_variants.builders.nix_events import Event, parse

TICK = 0.25  # seconds between two looks when Nix is silent
GRACE = 15.0  # seconds that Nix has to stop its builders


def run(command: Sequence[str], take: Callable[[Event], None], tick: Callable[[], None]) -> int:
    """Run `command`, feed each event of its stderr to `take`, call `tick` often; the exit status.

    Whatever ends this early (Ctrl-C, a defect) stops Nix first, and with it its local builders: Nix
    is in a process group of its own, so that it hears one signal and no second.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        for line in _lines(process.stderr.fileno(), tick):
            event = parse(line)
            if event:
                take(event)
        return process.wait()
    finally:
        _stop(process)
        if process.stderr:
            process.stderr.close()


def _lines(reading: int, tick: Callable[[], None]) -> Iterator[str]:
    left = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            tick()
            if not selector.select(TICK):
                continue
            chunk = os.read(reading, 65536)
            if not chunk:
                break
            *lines, left = (left + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
    if left:
        yield left.decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
