"""Run checks, each in its own process of a result's interpreter, so that each fails alone.

The next interpreters start while one check has the GPU to itself, and the time limit of a check
begins with its turn.

A check of several cards has them to itself: it waits until no other runs, and none starts beside it.
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
from vllm_variants.system import interruption
from vllm_variants.verify.catalogue import Check
from vllm_variants.verify.check_process import CheckedResult, CheckProcess

LOADING = 240.0  # seconds that the imports of one check may take
ENDING = 5.0  # seconds between an outcome and the end of its process
TIME_OVER = "the time of the whole run was over"
STUCK = "its process could not be ended and may hold the GPU (see the kernel's log: dmesg)"

CheckOutcome = dict[str, Any]
"""What a check's process printed, made by `checks/checking.py`: `check`, `status`, `reason`, `cases`, …"""

_STATUSES = {"ok", "failed", "unsupported", "skipped"}


def _failed(check: Check, reason: str) -> CheckOutcome:
    return {"check": check.name, "status": "failed", "reason": reason}


def _turn(process: CheckProcess, loading: float, deadline: float) -> CheckOutcome:
    """Give one process its turn on the GPU, end the process, and return its outcome."""
    outcome = _outcome(process, loading, deadline)
    patience = ENDING if "seconds" in outcome else 0.0  # a process that answered may end by itself
    if not process.stop(patience) and outcome["status"] == "failed":
        outcome["reason"] = f"{outcome.get('reason', 'it failed')}; {STUCK}"
    return outcome


def _outcome(process: CheckProcess, loading: float, deadline: float) -> CheckOutcome:
    """Let the process use the GPU once it has loaded, and wait for its outcome."""
    check = process.check
    record = _answer(process, loading, deadline, "while it was loading, ")
    if record.get("event") == "ready":
        process.go()
        record = _answer(process, check.limit, deadline, "")
    if record.get("check") != check.name or record.get("status") not in _STATUSES:
        return _failed(check, f"it answered with something that is no outcome: {json.dumps(record)[:120]}")
    return record


def _answer(process: CheckProcess, limit: float, deadline: float, when: str) -> dict[str, Any]:
    """What the process prints within `limit` seconds; otherwise the outcome that this comes to."""
    left = deadline - time.monotonic()
    answer = process.answer(min(limit, left))
    if answer is None and left < limit:
        return _no_time(process.check)
    if answer is None:
        answer = f"it did not answer within {limit:.0f} seconds"
    return _failed(process.check, when + answer) if isinstance(answer, str) else dict(answer)


def _no_time(check: Check) -> CheckOutcome:
    return {"check": check.name, "status": "skipped", "reason": TIME_OVER}


def _place(check: Check) -> tuple[bool, float]:
    """The order of checks that run together: the longest first, those that run alone at the end."""
    return check.gpus > 1, -check.limit


def _too_few_cards(check: Check, cards: int) -> CheckOutcome:
    have = "there is one" if cards == 1 else f"there are {cards}"
    reason = f"it needs {check.gpus} cards that the result fits, and {have}"
    return {"check": check.name, "status": "skipped", "reason": reason}


@dataclass(frozen=True)
class RunOptions:
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


def run(result: CheckedResult, checks: Sequence[Check], options: RunOptions) -> Iterator[CheckOutcome]:
    """Yield the outcome of every check as it becomes known: in order, unless several run together.

    Outcomes carry `log` when they failed and the logs are kept. Whatever happens, no process
    outlives the iteration. Raises `UsageError` or `ResourceError` where the logs cannot be kept.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(_scratch()))
        folder = _folder(options.logs or scratch / "logs")
        checks_to_run = CheckQueue(result, checks, options, scratch, folder)
        pool = stack.enter_context(ThreadPoolExecutor(options.together))
        stack.callback(checks_to_run.stop)
        yield from checks_to_run.outcomes(pool)


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


class CheckQueue:
    """The checks on their way: waiting, started (their imports load), and on the GPU."""

    def __init__(
        self,
        result: CheckedResult,
        checks: Sequence[Check],
        options: RunOptions,
        scratch: Path,
        logs: Path,
    ) -> None:
        self._waiting: deque[Check] = deque(checks if options.together == 1 else sorted(checks, key=_place))
        self._started: deque[CheckProcess | CheckOutcome] = deque()
        self._turns: dict[Future[CheckOutcome], CheckProcess] = {}
        self._result, self._options, self._scratch, self._logs = result, options, scratch, logs
        self._deadline = time.monotonic() + options.time

    def outcomes(self, pool: Executor) -> Iterator[CheckOutcome]:
        """Run all of them, each one's turn in a thread of `pool`, and yield the outcomes as they come."""
        while self._waiting or self._started or self._turns:
            self._start()
            while self._started and self._room(self._started[0]):
                process = self._started.popleft()
                if isinstance(process, CheckProcess):
                    turn = pool.submit(_turn, process, self._options.loading, self._deadline)
                    self._turns[turn] = process
                    self._start()
                else:
                    yield process
            for turn in wait(self._turns, return_when=FIRST_COMPLETED).done:
                yield self._annotated(turn.result(), self._turns.pop(turn))

    def _room(self, process: CheckProcess | CheckOutcome) -> bool:
        """Whether the next one may have its turn: one that shares no card with those that run."""
        if not isinstance(process, CheckProcess) or not self._turns:
            return True
        alone = process.check.gpus > 1 or any(other.check.gpus > 1 for other in self._turns.values())
        return not alone and len(self._turns) < self._options.together

    def _annotated(self, outcome: CheckOutcome, process: CheckProcess) -> CheckOutcome:
        """The outcome with what this run adds to it."""
        shared = self._options.together > 1 and process.check.gpus == 1
        extra: CheckOutcome = {"together": self._options.together} if shared else {}
        if self._options.logs and outcome["status"] == "failed":
            extra["log"] = str(process.log)
        if self._result.native and process.check.compiles:
            extra["compiles"] = process.check.compiles
        if process.check.gpus > 1 and (cards := process.check.share(self._result.gpus)):
            extra["cards"] = len(cards)
        return outcome | extra

    def _start(self) -> None:
        """Start the interpreters of the next checks, as many as may load ahead."""
        while self._waiting and len(self._started) < max(1, self._options.ahead):
            check = self._waiting.popleft()
            if time.monotonic() > self._deadline:
                self._started.append(_no_time(check))
            elif self._result.gpus and not check.share(self._result.gpus):
                self._started.append(_too_few_cards(check, len(self._result.gpus)))
            else:
                with interruption.held():
                    self._started.append(self._process(check))

    def _process(self, check: Check) -> CheckProcess | CheckOutcome:
        """The check's process; where it does not start, the outcome that says so."""
        options, log = self._options, self._logs / f"{check.name}.log"
        try:
            return CheckProcess(self._result, check, options.seed, self._scratch, log, options.together)
        except OSError as error:
            path = error.filename or self._result.python
            return _failed(check, f"it does not start: {error.strerror or error} ({path})")

    def stop(self) -> None:
        """End every process; the threads that talk to them come back then."""
        self._waiting.clear()
        for process in (*self._started, *self._turns.values()):
            if isinstance(process, CheckProcess):
                process.stop()
