"""Processes of our own that answer requests, one at a time each.

They are started as programs, speak JSON lines over pipes, and are the only processes that are ever
ended from here. A worker ends with its stdin, so none outlives its parent; `serving` sees to it that
it ends at once.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_variants.errors import ResourceError
from vllm_variants.system import interruption

_GRACE = 5.0
"""Seconds that a worker has to clean up behind itself before it is killed."""
_CHUNK = 1 << 16
_IMPORTED = ("lz4", "toml", "zstandard")
"""What workers import beside this package and the standard library."""


def command(module: str) -> list[str]:
    """The program of one worker: `main` of a module of this package."""
    return command_of(f"import sys; sys.path += sys.argv[1:-1]; from {module} import main; main()")


def command_of(code: str) -> list[str]:
    """The same for code: this interpreter with this package, what workers import and the standard library.

    Each may be in a folder of its own, as Nix has them.
    """
    packages = [Path(__file__).resolve().parents[2]]
    specs = (find_spec(name) for name in _IMPORTED)
    packages += [Path(spec.origin).parents[1] for spec in specs if spec and spec.origin]
    flags = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
    return [sys.executable, *flags, "-c", code, *map(str, dict.fromkeys(packages)), str(os.getpid())]


def answers(
    program: Sequence[str],
    requests: Sequence[Mapping[str, Any]],
    jobs: int,
    begun: Callable[[int], None] = lambda index: None,
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Each request's index with its answer, as they become ready, from up to `jobs` workers.

    Requests are begun in their order; `begun` is called with the index of each before it is. Raises
    `ResourceError` when a worker was killed. However this ends, no worker is left.
    """
    workers: list[_Worker] = []
    waiting = list(enumerate(requests))[::-1]
    done = False

    def ask(worker: _Worker) -> None:
        index, request = waiting.pop()
        begun(index)
        worker.ask(index, request)

    try:
        with selectors.DefaultSelector() as ready:
            for _ in range(min(jobs, len(requests))):
                with interruption.held():
                    workers.append(_Worker(program))
                ready.register(workers[-1].output, selectors.EVENT_READ, workers[-1])
                ask(workers[-1])
            while ready.get_map():
                for key, _ in ready.select():
                    worker: _Worker = key.data
                    answer = worker.read()
                    if answer is None:
                        continue
                    yield worker.index, answer
                    if waiting:
                        ask(worker)
                    else:
                        ready.unregister(worker.output)
        done = True
    finally:
        with interruption.held():  # impatience would leave workers
            _end(workers, asked=not done)


class _Worker:
    """One process, and the index of the request that it answers."""

    def __init__(self, program: Sequence[str]) -> None:
        self.index, self._buffer = -1, b""
        try:
            self.process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what it has to say is in its answers
            )
        except OSError as error:
            raise ResourceError(
                f"another process cannot be started: {error.strerror}", hint="use fewer, `--jobs 1`"
            ) from error

    @property
    def output(self) -> int:
        assert self.process.stdout
        return self.process.stdout.fileno()

    def ask(self, index: int, request: Mapping[str, Any]) -> None:
        """Send a request. It may be in vain: `read` tells."""
        assert self.process.stdin
        self.index = index
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> dict[str, Any] | None:
        """The answer, None while it is not whole; raise `ResourceError` when there will be none."""
        data = os.read(self.output, _CHUNK)
        self._buffer += data
        if not data:
            raise ResourceError(
                "a worker process was killed, most likely for want of memory",
                hint="vllm-variants doctor",
            )
        if not self._buffer.endswith(b"\n"):
            return None
        answer: dict[str, Any] = json.loads(self._buffer)
        self._buffer = b""
        return answer


def _end(workers: Sequence[_Worker], *, asked: bool) -> None:
    """Let workers end by themselves, or `asked` to; kill those that do not."""
    for worker in workers:
        if asked:
            worker.process.terminate()
        with suppress(BrokenPipeError):
            assert worker.process.stdin
            worker.process.stdin.close()
    deadline = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        assert worker.process.stdout
        worker.process.stdout.close()
