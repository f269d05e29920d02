"""Run checks, each in its own process of a result's interpreter, so that each fails alone.

The next interpreters start while one check has the GPU to itself, and the time limit of a check
begins with its turn.

With `together` > 1 several checks share the GPU. Most of a first run is the driver compiling PTX on
one core, so that takes much less time; but a median may then hold some of the neighbours' work.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.errors import UsageError, resource_error
from vllm_variants.verify.catalogue import Check
from vllm_variants.verify.processes import Process, Subject

LOADING = 240.0  # seconds that the imports of one check may take
ENDING = 5.0  # seconds between an outcome and the end of its process
TIME_OVER = "the time of the whole run was over"
STUCK = "its process could not be ended and may hold the GPU (see the kernel's log: dmesg)"

Outcome = dict[str, Any]


def _failed(check: Check, reason: str) -> Outcome:
    return {"check": check.name, "status": "failed", "reason": reason}


_STATUSES = {"ok", "failed", "unsupported", "skipped"}


def _turn(process: Process, loading: float, deadline: float) -> Outcome:
    """Give one process its turn on the GPU, end the process, and return its outcome."""
    outcome = _asked(process, loading, deadline)
    patience = ENDING if "seconds" in outcome else 0.0  # whoever answered may come down by itself
    if not process.stop(patience) and outcome["status"] == "failed":
        outcome["reason"] = f"{outcome.get('reason', 'it failed')}; {STUCK}"
    return outcome


def _asked(process: Process, loading: float, deadline: float) -> Outcome:
    check = process.check
    said = _said(process, loading, deadline, "while it was loading, ")
    if said.get("event") == "ready":
        process.go()
        said = _said(process, check.limit, deadline, "")
    if said.get("check") != check.name or said.get("status") not in _STATUSES:
        return _failed(check, f"it answered with something that is no outcome: {json.dumps(said)[:120]}")
    return said


def _said(process: Process, limit: float, deadline: float, when: str) -> dict[str, Any]:
    """What the process says within `limit` seconds; otherwise the outcome that this comes to."""
    left = deadline - time.monotonic()
    said = process.answer(min(limit, left))
    if said is None and left < limit:
        return _no_time(process.check)
    if said is None:
        said = f"it did not answer within {limit:.0f} seconds"
    return _failed(process.check, when + said) if isinstance(said, str) else dict(said)


def _no_time(check: Check) -> Outcome:
    return {"check": check.name, "status": "skipped", "reason": TIME_OVER}


@dataclass(frozen=True)
class Plan:
    """How to run checks; the times are in seconds.

    `ahead` is how many interpreters may load while others run, `together` how many checks share the
    GPU (the longest first then), `time` ends the whole run (what is left becomes `skipped`), and
    `logs` is a folder that keeps what the checks write to stderr.
    """

    seed: int
    ahead: int = 2
    together: int = 1
    time: float = float("inf")
    loading: float = LOADING
    logs: Path | None = None


def run(subject: Subject, checks: Sequence[Check], plan: Plan) -> Iterator[Outcome]:
    """Yield the outcome of every check as it becomes known: in order, unless several run together.

    Outcomes carry `log` when they failed and the logs are kept. Whatever happens, no process
    outlives the iteration.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(_scratch()))
        folder = _folder(plan.logs or scratch / "logs")
        line = _Line(subject, checks, plan, scratch, folder)
        pool = stack.enter_context(ThreadPoolExecutor(plan.together))
        stack.callback(line.stop)
        yield from line.outcomes(pool)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the checks' caches; a process that could not be ended may still write there."""
    return tempfile.TemporaryDirectory(prefix="vllm-variants-verify-", ignore_cleanup_errors=True)


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"the logs cannot go to {path}: {error.filename} is not a folder",
            hint="name another: --logs FOLDER",
        ) from error
    except OSError as error:
        raise resource_error(error) from error
    return path


class _Line:
    """The checks on their way: waiting, started (their imports load), and on the GPU."""

    def __init__(
        self, subject: Subject, checks: Sequence[Check], plan: Plan, scratch: Path, logs: Path
    ) -> None:
        in_turn = sorted(checks, key=lambda check: -check.limit) if plan.together > 1 else checks
        self._waiting: deque[Check] = deque(in_turn)
        self._started: deque[Process | Outcome] = deque()
        self._turns: dict[Future[Outcome], Process] = {}
        self._subject, self._plan, self._scratch, self._logs = subject, plan, scratch, logs
        self._deadline = time.monotonic() + plan.time

    def outcomes(self, pool: Executor) -> Iterator[Outcome]:
        while self._waiting or self._started or self._turns:
            self._start()
            while self._started and len(self._turns) < self._plan.together:
                process = self._started.popleft()
                if isinstance(process, Process):
                    turn = pool.submit(_turn, process, self._plan.loading, self._deadline)
                    self._turns[turn] = process
                    self._start()
                else:
                    yield process
            for turn in wait(self._turns, return_when=FIRST_COMPLETED).done:
                yield self._named(turn.result(), self._turns.pop(turn))

    def _named(self, outcome: Outcome, process: Process) -> Outcome:
        extra: Outcome = {"together": self._plan.together} if self._plan.together > 1 else {}
        if self._plan.logs and outcome["status"] == "failed":
            extra["log"] = str(process.log)
        return outcome | extra

    def _start(self) -> None:
        while self._waiting and len(self._started) < max(1, self._plan.ahead):
            check = self._waiting.popleft()
            if time.monotonic() > self._deadline:
                self._started.append(_no_time(check))
                continue
            log = self._logs / f"{check.name}.log"
            try:
                self._started.append(
                    Process(self._subject, check, self._plan.seed, self._scratch, log, self._plan.together)
                )
            except OSError as error:
                what = error.filename or self._subject.python
                reason = f"it does not start: {error.strerror or error} ({what})"
                self._started.append(_failed(check, reason))

    def stop(self) -> None:
        """End every process; the threads that talk to them come back then."""
        self._waiting.clear()
        for process in (*self._started, *self._turns.values()):
            if isinstance(process, Process):
                process.stop()
