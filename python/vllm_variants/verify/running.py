"""Run checks, each in its own process of a result's interpreter, so that each fails alone.

Protocol (see `checks/run.py`): the process prints `{"event": "ready"}` when its imports are done,
waits for a line, and then prints one outcome. The next interpreters start while one check has the
GPU to itself, and the time limit of a check begins with its turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vllm_variants.verify.expectations import CHECKS, Check

LOADING = 240.0  # seconds that the imports of one check may take
ENDING = 5.0  # seconds between an outcome and the end of its process

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is checked: an interpreter, the facts it must agree with, and the GPUs it may see.

    `gpus` are values for CUDA_VISIBLE_DEVICES, the one to check on first; empty: whatever is set.
    """

    python: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()

    def environment(self, scratch: Path, gpus: int) -> dict[str, str]:
        """The environment of a check: no foreign Python paths, caches that start empty."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"}
        }
        if self.gpus:
            kept["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[:gpus])
        return kept | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_CACHE_PATH": str(scratch / "driver"),
            "TRITON_CACHE_DIR": str(scratch / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "VLLM_CACHE_ROOT": str(scratch / "vllm"),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONNOUSERSITE": "1",
        }


class _Process:
    """One check's process: its lines as they come, its end, and its log."""

    def __init__(self, subject: Subject, check: Check, seed: int, scratch: Path, log: Path) -> None:
        self.check, self.log = check, log
        command = [
            str(subject.python), str(CHECKS / "run.py"), check.name, "--script", check.script,
            "--seed", str(seed), "--facts", json.dumps(dict(subject.facts)), "--gated",
        ]  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=subject.environment(scratch, check.gpus),
                cwd=scratch,
                start_new_session=True,
            )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def answer(self, seconds: float) -> Mapping[str, Any] | str:
        """The next JSON object that it prints, or a sentence why there is none."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return f"it did not answer within {seconds:.0f} seconds"
            if line is None:
                return self._ended()
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError:
                return f"it printed something that is no outcome: {line.strip()[:120]!r}"
            return found if isinstance(found, dict) else f"it printed {line.strip()[:120]!r}"

    def _ended(self) -> str:
        code = self._process.wait()
        last = self.last_words()
        after = f"; its last words: {last}" if last else ""
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"its process crashed ({signal.Signals(-code).name}){after}"
        return f"its process ended with status {code} and without an outcome{after}"

    def last_words(self) -> str:
        """The last line of its log that is not empty."""
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

    def stop(self, patience: float = 0.0) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def _failed(check: Check, reason: str) -> Outcome:
    return {"check": check.name, "status": "failed", "reason": reason}


_STATUSES = {"ok", "failed", "unsupported", "skipped"}


def _turn(process: _Process, loading: float) -> Outcome:
    """Give one process its turn on the GPU and return its outcome."""
    check = process.check
    said = process.answer(loading)
    if isinstance(said, str):
        return _failed(check, f"while it was loading, {said}")
    if said.get("event") == "ready":
        process.go()
        said = process.answer(check.limit)
        if isinstance(said, str):
            return _failed(check, said)
    if said.get("check") != check.name or said.get("status") not in _STATUSES:
        return _failed(check, f"it answered with something that is no outcome: {json.dumps(said)[:120]}")
    return dict(said)


def run(
    subject: Subject,
    checks: Sequence[Check],
    *,
    seed: int,
    ahead: int = 2,
    logs: Path | None = None,
    loading: float = LOADING,
) -> Iterator[Outcome]:
    """Yield the outcome of every check, in order, as each becomes known.

    `ahead` is how many interpreters may load while another check runs; `logs` is a folder that
    keeps what the checks write to stderr (a temporary one otherwise). Outcomes carry `log` when
    they failed and the logs are kept. Whatever happens, no process outlives the iteration.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vllm-variants-verify-")))
        folder = logs or scratch / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        waiting: deque[Check] = deque(checks)
        started: deque[_Process] = deque()
        stack.callback(_stop_all, started)
        while waiting or started:
            while waiting and len(started) <= ahead:
                check = waiting.popleft()
                try:
                    started.append(_Process(subject, check, seed, scratch, folder / f"{check.name}.log"))
                except OSError as error:
                    # Keep the order: this one is answered when those before it have been.
                    while started:
                        yield _finish(started, loading, logs)
                    yield _failed(check, f"{subject.python} does not start: {error.strerror or error}")
            if started:
                yield _finish(started, loading, logs)


def _stop_all(started: deque[_Process]) -> None:
    for process in started:
        process.stop()


def _finish(started: deque[_Process], loading: float, logs: Path | None) -> Outcome:
    process = started[0]
    outcome = _turn(process, loading)
    process.stop(ENDING if outcome["status"] != "failed" else 0.5)
    started.popleft()
    if logs and outcome["status"] == "failed":
        outcome["log"] = str(process.log)
    return outcome
