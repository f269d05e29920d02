"""Run several short programs, so many at once; none is left running when this ends early."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from vllm_variants.system import orphans
from vllm_variants.system.process import end

POLL = 0.01  # seconds


@dataclass(frozen=True)
class Ended:
    """How a program ended: status, and what it wrote to stdout and stderr."""

    status: int
    out: str
    err: str


@dataclass
class _Running:
    index: int
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]

    def ended(self) -> Ended:
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(self.process.returncode, *texts)


def run_all(commands: Sequence[Sequence[str]], at_once: int) -> list[Ended]:
    """Run every command, at most `at_once` at the same time; how each ended, in their order."""
    waiting = list(enumerate(commands))
    running: list[_Running] = []
    ended: dict[int, Ended] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(*waiting.pop(0)))
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                ended[each.index] = each.ended()
            time.sleep(POLL)
    finally:
        end([each.process for each in running])
    return [ended[index] for index in range(len(commands))]


def _start(index: int, command: Sequence[str]) -> _Running:
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed in `ended`)
    process = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=orphans.environment()
    )
    return _Running(index, process, out, err)
