"""One run of a builder's program: its events read as they come, its end, its interruption."""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vllm_variants.nix.events import Event, parse
from vllm_variants.system import orphans, process

TICK = 0.25  # seconds between two looks when Nix is silent


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
    is in a session of its own, so that it hears one signal and no second.
    """
    program = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if stdout else subprocess.PIPE,
        cwd=folder,
        env=orphans.environment(env),
        start_new_session=True,
    )
    talk = program.stdout if stdout else program.stderr
    assert talk is not None
    try:
        for line in _lines(program, talk.fileno(), tick):
            event = parse(line)
            if event:
                take(event)
        return _status(program, tick)
    finally:
        process.stop(program, talk=talk.fileno())
        talk.close()


def _status(program: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    """The exit status of a program that says nothing more, once it has ended."""
    while True:
        try:
            return program.wait(TICK)
        except subprocess.TimeoutExpired:
            tick()


def _lines(program: subprocess.Popen[bytes], reading: int, tick: Callable[[], None]) -> Iterator[str]:
    """What it writes, until it closes that or has ended (an ssh that it leaves may hold it open)."""
    left = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            tick()
            ended = program.poll() is not None
            if not selector.select(0 if ended else TICK):
                if ended:
                    break
                continue
            chunk = os.read(reading, 65536)
            if not chunk:
                break
            *lines, left = (left + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")
    if left:
        yield left.decode(errors="replace")
