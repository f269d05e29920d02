"""Compile many PTX at once: largest first, as many as cores and memory allow, each kept when done.

A PTX that cannot be compiled is one sentence, and the others go on. What is compiled is in the cache
at once, so that a person who stops this, or a machine that does, loses only what was under way. No
ptxas outlives this process, and all temporary files are in one folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllm_variants.errors import InputError, resource_error
from vllm_variants.fatbin.codecs import Encoded
from vllm_variants.fatbin.native import cubin as cubins
from vllm_variants.fatbin.native import ptx as ptxs
from vllm_variants.fatbin.native import schedule
from vllm_variants.fatbin.native.cache import Cache, key_of
from vllm_variants.fatbin.native.compiler import Compiler, out_of_memory
from vllm_variants.fatbin.native.cubin import WrongCubin
from vllm_variants.fatbin.native.ptx import Ptx
from vllm_variants.model.capability import Target
from vllm_variants.system import interruption
from vllm_variants.system.parent_death import die_with_us

_POLL = 0.02  # seconds
_REPORT = 1.0  # seconds between two reports when nothing ends
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Job:
    """A PTX to compile: its name for people, its bytes, and what ptxas is asked for.

    `read` gives the text, again and again; it may raise an `InputError`. What it gives is compared with what
    it gave before: a library may be replaced meanwhile.
    """

    name: str
    size: int
    target: Target
    options: tuple[str, ...]
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Compiled:
    """A cubin that is what its PTX asked for; `stored` where it is encoded already.

    `seconds` of CPU and `peak` bytes are 0 for one from the cache, and for all but the first of the
    jobs that share a compilation.
    """

    job: Job
    key: str
    ptx: Ptx
    cubin: bytes
    stored: Encoded | None
    cached: bool = False
    seconds: float = 0.0
    peak: int = 0


@dataclass(frozen=True)
class Failed:
    """A PTX that stays PTX, and why, as a clause."""

    job: Job
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far it is: PTX images and their bytes; `remaining` seconds."""

    done: int
    total: int
    bytes_done: int
    bytes_total: int
    cached: int
    failed: int
    running: tuple[str, ...]
    remaining: float

    def sentence(self) -> str:
        """For a line of progress."""
        parts = [f"{self.done} of {self.total} compiled"]
        parts += [f"{self.cached} from the cache"] if self.cached else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts.append(f"{self.bytes_done / 1e6:.0f} of {self.bytes_total / 1e6:.0f} MB of PTX")
        if self.done < self.total:
            parts.append(f"about {_duration(self.remaining)} left")
        return ", ".join(parts)


@dataclass(frozen=True)
class Limits:
    """How many compilers at once, and what tells how many bytes of memory are free now."""

    at_once: int
    available: Callable[[], int]


def compile_all(
    jobs: Sequence[Job],
    compiler: Compiler,
    cache: Cache,
    limits: Limits,
    *,
    progress: Callable[[Progress], None] = lambda progress: None,
    folder: Path | None = None,
) -> Iterator[Compiled | Failed]:
    """Compile every job; yields what became of each, as they end (those in the cache first).

    Jobs of the same PTX, target and options are compiled once. `folder` is where temporary files
    go (default: the system's); they are gone afterwards. Raises `ResourceError` on a full disk.
    """
    state, todo = _State(jobs, limits, progress), dict[str, _Task]()
    for outcome in _look_up(jobs, compiler, cache, todo):
        state.ended(outcome)
        yield outcome
    if not todo:
        return
    try:
        work = Path(tempfile.mkdtemp(prefix="vllm-variants-ptxas.", dir=folder))
    except OSError as error:
        raise resource_error(error) from error
    waiting = sorted(todo.values(), key=lambda task: (-task.size, task.key))
    alone: list[_Task] = []  # killed once, most likely for want of memory
    running: list[_Running] = []
    try:
        while waiting or running or alone:
            for outcome in _start_some(waiting, alone, running, compiler, limits, work):
                state.ended(outcome)
                yield outcome
            for process in [process for process in running if process.ended()]:
                running.remove(process)
                if process.starved and not process.task.alone:
                    alone.append(process.task.by_itself())
                    continue
                for outcome in process.outcomes(compiler, cache):
                    state.ended(outcome)
                    yield outcome
                state.pace = state.pace_after(process)
            state.report([task.size for task in (*waiting, *alone)], running)
            time.sleep(_POLL)
    except OSError as error:
        raise resource_error(error) from error
    finally:
        for process in running:
            process.kill()
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Task:
    """One compilation for the jobs that want its cubin."""

    key: str
    ptx: Ptx
    jobs: tuple[Job, ...]
    alone: bool = False

    @property
    def size(self) -> int:
        return self.jobs[0].size

    def text(self, compiler: Compiler) -> bytes:
        """The text that the key is of; raise `InputError` where it changed, or cannot be read any more."""
        job = self.jobs[0]
        text = ptxs.text_of(job.read())
        if key_of(text, job.target, job.options, compiler) != self.key:
            raise InputError("somebody changed it while others were compiled")
        return text

    def by_itself(self) -> _Task:
        return _Task(self.key, self.ptx, self.jobs, alone=True)


def _look_up(
    jobs: Sequence[Job], compiler: Compiler, cache: Cache, todo: dict[str, _Task]
) -> Iterator[Compiled | Failed]:
    """What need not or cannot be compiled; what must be goes into `todo`, by key."""
    for job in jobs:
        try:
            text = ptxs.text_of(job.read())
            ptx = ptxs.parse(text)
        except InputError as error:
            yield Failed(job, error.message)
            continue
        key = key_of(text, job.target, job.options, compiler)
        if key in todo:
            todo[key] = _Task(key, ptx, (*todo[key].jobs, job))
        elif found := _cached(key, job, ptx, cache):
            yield found
        else:
            todo[key] = _Task(key, ptx, (job,))


def _cached(key: str, job: Job, ptx: Ptx, cache: Cache) -> Compiled | None:
    kept = cache.get(key)
    if kept is None:
        return None
    try:
        cubins.require(cubins.parse(kept.cubin), ptx, job.target)
    except WrongCubin as error:
        cache.distrust(key, error.message)
        return None
    return Compiled(job, key, ptx, kept.cubin, kept.stored, cached=True)


def _start_some(
    waiting: list[_Task],
    alone: list[_Task],
    running: list[_Running],
    compiler: Compiler,
    limits: Limits,
    work: Path,
) -> Iterator[Failed]:
    """Start what cores and memory allow; those that were killed once when all others are done.

    Yields the jobs of what cannot be started, since its text is not there any more.
    """
    if alone and not waiting and not running:
        yield from _start(alone.pop(0), running, compiler, work)
    if any(process.task.alone for process in running):
        return
    while waiting and len(running) < limits.at_once:
        sizes = [task.size for task in waiting]
        used = [(process.task.size, process.memory()) for process in running]
        index = schedule.next_to_start(sizes, used, limits.at_once, limits.available())
        if index is None:
            return
        yield from _start(waiting.pop(index), running, compiler, work)


def _start(task: _Task, running: list[_Running], compiler: Compiler, work: Path) -> Iterator[Failed]:
    try:
        text = task.text(compiler)
    except InputError as error:
        yield from (Failed(job, error.message) for job in task.jobs)
        return
    with interruption.held():
        running.append(_Running(task, text, compiler, work))


class _Running:
    """A ptxas at work on one task, and what became of it."""

    def __init__(self, task: _Task, text: bytes, compiler: Compiler, work: Path) -> None:
        self.task, self.seconds, self.peak = task, 0.0, 0
        self.started = time.monotonic()
        job = task.jobs[0]
        stem = work / task.key[:16]
        self._text, self._cubin, self._words = (stem.with_suffix(end) for end in (".ptx", ".cubin", ".err"))
        self._text.write_bytes(text)
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(
                compiler.command(job.target, job.options, self._text, self._cubin),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                env=compiler.environment(work),
                preexec_fn=die_with_us(),
            )

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def memory(self) -> int:
        """Bytes it has in memory now."""
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * _PAGE

    def ended(self) -> bool:
        """Whether it ended; then its time, peak and status are known."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds = usage.ru_utime + usage.ru_stime
        self.peak = usage.ru_maxrss * 1024
        self.duration = self.elapsed
        self._text.unlink(missing_ok=True)
        return True

    @property
    def starved(self) -> bool:
        """Whether it was killed, or gave up, for want of memory as far as can be told."""
        status = self._process.returncode
        return status == -signal.SIGKILL or (bool(status) and out_of_memory(self._said()))

    def outcomes(self, compiler: Compiler, cache: Cache) -> Iterator[Compiled | Failed]:
        """What the task's jobs get; its cubin is kept in the cache."""
        task = self.task
        try:
            cubin = self._checked(compiler)
        except WrongCubin as error:
            yield from (Failed(job, error.message) for job in task.jobs)
            return
        finally:
            for path in (self._cubin, self._words):
                path.unlink(missing_ok=True)
        stored = cache.put(task.key, cubin)
        first, *others = (Compiled(job, task.key, task.ptx, cubin, stored) for job in task.jobs)
        yield replace(first, seconds=self.seconds, peak=self.peak)
        yield from others

    def _checked(self, compiler: Compiler) -> bytes:
        """The cubin, or `WrongCubin` with the reason why there is none that can be used."""
        if status := self._process.returncode:
            raise WrongCubin(self._why(compiler, status))
        try:
            cubin = self._cubin.read_bytes()
            cubins.require(cubins.parse(cubin), self.task.ptx, self.task.jobs[0].target)
        except FileNotFoundError as error:
            raise WrongCubin(f"ptxas {compiler.version} left no cubin") from error
        except WrongCubin as error:
            raise WrongCubin(f"what ptxas {compiler.version} made cannot be used: {error.message}") from error
        return cubin

    def kill(self) -> None:
        """End it; for when all ends early."""
        with suppress(ProcessLookupError):
            self._process.kill()
        with suppress(ChildProcessError):
            self._process.wait()

    def _why(self, compiler: Compiler, status: int) -> str:
        if self.starved:
            needs = max(self.peak, schedule.memory(self.task.size))
            return (
                f"ptxas was killed twice, most likely for want of memory: it needs about {needs / 1e9:.1f} GB"
            )
        return compiler.refusal(self._said(), status)

    def _said(self) -> str:
        try:
            return self._words.read_bytes()[-65536:].decode("utf-8", "replace")
        except OSError:
            return ""


@dataclass
class _State:
    """The counts behind `Progress`."""

    jobs: Sequence[Job]
    limits: Limits
    tell: Callable[[Progress], None]
    pace: schedule.Pace = field(default_factory=schedule.Pace)
    done: int = 0
    bytes_done: int = 0
    cached: int = 0
    failed: int = 0
    reported: tuple[float, int, int] = (0.0, -1, -1)

    def ended(self, outcome: Compiled | Failed) -> None:
        self.done += 1
        self.bytes_done += outcome.job.size
        self.failed += isinstance(outcome, Failed)
        self.cached += isinstance(outcome, Compiled) and outcome.cached
        if self.done == len(self.jobs):
            self.report([], [])

    def pace_after(self, process: _Running) -> schedule.Pace:
        return self.pace.after(process.task.size, process.duration)

    def report(self, waiting: Sequence[int], running: Sequence[_Running]) -> None:
        """Tell when something changed, or a second has gone by."""
        now, (before, done, at_work) = time.monotonic(), self.reported
        if (done, at_work) == (self.done, len(running)) and now - before < _REPORT:
            return
        self.reported = now, self.done, len(running)
        left = schedule.remaining(
            waiting,
            [(process.task.size, process.elapsed) for process in running],
            self.limits.at_once,
            self.pace,
        )
        self.tell(
            Progress(
                self.done, len(self.jobs), self.bytes_done, sum(job.size for job in self.jobs),
                self.cached, self.failed,
                tuple(process.task.jobs[0].name for process in running), left,
            )
        )  # fmt: skip


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
