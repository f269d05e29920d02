"""One run of a builder's program: its events read as they come, its end, its interruption."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vllm_variants.builders.nix_events import Event, parse

TICK = 0.25  # seconds between two looks when Nix is silent
GRACE = 15.0  # seconds that Nix has to stop its builders


def run(
    command: Sequence[str],
    take: Callable[[Event], None],
    tick: Callable[[], None],
    *,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: bool = False,
) -> int:
    """Run `command`, feed each event of its stderr to `take`, call `tick` often; the exit status.

    `folder` and `env` are its own; with `stdout` what it writes there is read as well.

    Whatever ends this early (Ctrl-C, a defect) stops Nix first, and with it its local builders: Nix
    is in a process group of its own, so that it hears one signal and no second.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if stdout else subprocess.PIPE,
        cwd=folder,
        env=env,
        start_new_session=True,
    )
    talk = process.stdout if stdout else process.stderr
    assert talk is not None
    try:
        for line in _lines(talk.fileno(), tick):
            event = parse(line)
            if event:
                take(event)
        return process.wait()
    finally:
        _stop(process)
        talk.close()


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
    except BaseException as error:  # too slow, or asked to stop a second time
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
