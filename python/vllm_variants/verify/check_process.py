"""One check in one process of a result's interpreter: started, given its turn, ended with all it started.

Protocol (see `checks/run.py`): the process prints `{"event": "ready"}` when its imports are done,
waits for a line, and then prints one outcome.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vllm_variants.checks.multicast import MULTICAST_OFF
from vllm_variants.system import process
from vllm_variants.verify.catalogue import CHECKS, Check

CLOSING = 10.0  # seconds between the end of a process's output and its own (it gives the GPU back)
LONGEST = 1 << 24  # bytes of a line that are read as one: an outcome with all its cases has thousands

FOREIGN = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"})
"""Variables that would let another Python's packages into a result's."""


def alone(scratch: Path) -> dict[str, str]:
    """What every process of checks has in its environment: no network, one process, caches in `scratch`."""
    return {
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
    }


@dataclass(frozen=True)
class CheckedResult:
    """What is checked: an interpreter, the facts it must agree with, and the GPUs it may see.

    `facts` are listed in `checks/imports.py`. `gpus` are names for CUDA_VISIBLE_DEVICES, the one to
    check on first; empty: whatever is set. No check may use NVLink multicast. With `native` the driver
    may compile nothing, except for checks that say why they need it.
    """

    python: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    native: bool = False

    def environment(self, scratch: Path, check: Check, together: int = 1) -> dict[str, str]:
        """The environment of a check, its GPUs in it: no foreign Python paths, caches in `scratch`."""
        environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(check.share(self.gpus))
        if self.native and not check.compiles:
            # CUDA's programming guide, "CUDA environment variables": embedded PTX is not compiled then.
            environment["CUDA_DISABLE_PTX_JIT"] = "1"
        if together > 1:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // together))
        return (
            environment
            | MULTICAST_OFF
            | {
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                "CUDA_CACHE_PATH": str(scratch / "driver"),
                "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
                "VLLM_HOST_IP": "127.0.0.1",
                "PYTHONUNBUFFERED": "1",
            }
            | alone(scratch)
        )


class CheckProcess:
    """The process of one check: the lines it prints, its end, and its log.

    `scratch` is the folder of the run's caches, `log` the file that gets its stderr, `together` how many
    checks share the GPU. Raises `OSError` when it cannot be started.
    """

    def __init__(
        self, result: CheckedResult, check: Check, seed: int, scratch: Path, log: Path, together: int
    ) -> None:
        self.check, self.log = check, log
        command: list[str | Path] = [
            result.python, CHECKS / "run.py", check.name, "--script", check.script,
            "--seed", str(seed), "--facts", json.dumps(dict(result.facts)), "--gated",
        ]  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stopped = False
        with log.open("wb") as stderr:
            self._process = process.start(
                command,
                env=result.environment(scratch, check, together),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=scratch,
            )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            while line := stdout.readline(LONGEST):
                if not line.isspace():
                    self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def answer(self, seconds: float) -> Mapping[str, Any] | str | None:
        """The next JSON object that it prints, or a sentence why there is none; None: too late."""
        deadline = time.monotonic() + seconds
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if line is None:
            return self._end(deadline)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return f"it printed something that is no outcome: {line.strip()[:120]!r}"
        return record if isinstance(record, dict) else f"it printed {line.strip()[:120]!r}"

    def _end(self, deadline: float) -> str:
        """How a process ended that has closed its output, or that it did not, by `deadline` at the latest."""
        if self._stopped:
            return "it was stopped"
        try:
            code = self._process.wait(max(0.0, min(CLOSING, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            return "it closed its output without an outcome, and goes on"
        last = self.last_line()
        after = f"; its last words: {last}" if last else ""
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"its process crashed ({signal.Signals(-code).name}){after}"
        return f"its process ended with status {code} and without an outcome{after}"

    def last_line(self) -> str:
        """The last line of its log that is not empty, at most 200 letters of it."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""

    def go(self) -> None:
        """Let it use the GPU."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            stdin.write(b"go\n")
            stdin.flush()

    def stop(self, patience: float = 0.0) -> bool:
        """End the process and everything it started; whether it is gone.

        It has `patience` seconds to end by itself. It is not gone where SIGKILL does not end it: a driver
        that hangs keeps the processes that wait in it. Returns `patience + 2 × process.GONE` seconds
        later at the latest.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._stopped = True
        self._lines.put(None)  # wakes whoever waits for an answer
        gone = process.kill(self._process)
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        return gone
