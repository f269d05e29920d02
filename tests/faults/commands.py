"""Run the real command line as processes, disturb it, and see what it left running.

Every command is a session of its own and carries a mark in its environment, so that whatever it
started is found again, wherever it went. What it writes goes to files: a pipe would be held open by
a process that was left behind, and then nobody would learn of it.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SHIM = Path(__file__).with_name("shim.c")
_MARK = "FAULT_SUITE_MARK"
_COUNTER = struct.Struct("<QQQ488s")
LONGEST = 60.0
"""Seconds after which a command counts as hung."""
GRACE = 6.0
"""Seconds in which the children of a command that was killed must be gone."""


@dataclass(frozen=True)
class Strike:
    """A fault at one exact point: `do` is the shim's action (see shim.c), `at` the number of the call."""

    do: str
    at: int
    after: bool = False

    def __str__(self) -> str:
        return f"{self.do} {'behind' if self.after else 'before'} call {self.at}"


@dataclass
class Ended:
    """How a command ended: its exit status (negative: the signal), its words, what it left running."""

    command: str
    status: int | None
    out: str
    err: str
    seconds: float
    sent: list[int] = field(default_factory=list)
    struck: str = ""
    calls: int = 0
    left: list[str] = field(default_factory=list)

    @property
    def hung(self) -> bool:
        return self.status is None


def build_shim(to: Path) -> Path | None:
    """The compiled shim; None where there is no C compiler for it."""
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(to), str(SHIM), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return to if done.returncode == 0 else None


class Command:
    """`vllm-variants` with some arguments, running. Use `finish` to wait for its end."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        env: Mapping[str, str],
        logs: Path,
        *,
        cwd: Path,
        shim: Path | None = None,
        under: Path | None = None,
        strike: Strike | None = None,
        before: Callable[[], None] | None = None,
        program: Sequence[str] = (),
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._logs = logs / self._mark[:8]
        self._logs.mkdir(parents=True)
        env = {**env, _MARK: self._mark}
        self._counter = self._logs / "counter"
        self._shimmed = bool(shim and under)
        if shim and under:
            self._counter.write_bytes(bytes(_COUNTER.size))
            env |= {"LD_PRELOAD": str(shim), "FAULT_COUNTER": str(self._counter), "FAULT_UNDER": str(under)}
            if strike:
                env |= {"FAULT_DO": strike.do, "FAULT_AT": str(strike.at)}
                env |= {"FAULT_AFTER": "1"} if strike.after else {}
        command = [*(program or (sys.executable, "-m", "vllm_variants")), *map(str, arguments)]
        self.words = " ".join(map(str, arguments))
        self.sent: list[int] = []
        self._started = time.monotonic()
        with (self._logs / "out").open("wb") as out, (self._logs / "err").open("wb") as err:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=before,
            )

    def send(self, signum: int, group: bool = False) -> bool:
        """Send a signal to the command's first process, or to all of its group; False when it had ended."""
        if self.process.poll() is not None:
            return False
        self.sent.append(signum)
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, signum)
        return True

    def wait(self, seconds: float) -> bool:
        """Whether it ended within `seconds`."""
        try:
            self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def stopped(self) -> bool:
        """Whether a process of it stands still after SIGSTOP."""
        return any(_state(pid) == "T" for pid in self._family())

    def resume(self) -> None:
        """Let every process of it go on that stands still, also those in groups of their own (uv)."""
        for pid in self._family():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def waits_for_a_lock(self) -> bool:
        """Whether one of its processes waits for somebody's flock."""
        family = set(self._family())
        with suppress(OSError):
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "->" and int(fields[5]) in family:
                    return True
        return False

    def finish(self, seconds: float = LONGEST) -> Ended:
        """Wait for the end, and for its children's; what hangs or was left is reported and ended.

        What comes to its call with SIGSTOP only now, on a slow machine, is told to go on as well.
        """
        deadline = time.monotonic() + seconds
        while not (ended := self.wait(min(1.0, deadline - time.monotonic()))):
            if time.monotonic() > deadline:
                break
            if self.stopped():
                self.resume()
        took = time.monotonic() - self._started
        left = self._left(GRACE if ended else 0)
        for pid in self._family():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        status = self.process.wait() if ended else None
        self.process.wait()
        out, err = ((self._logs / name).read_text(errors="replace") for name in ("out", "err"))
        calls, happened, what = self._counted()
        struck = what if happened else ""
        return Ended(
            self.words, status, out, err, took, list(self.sent), struck, calls, left if ended else []
        )

    def _counted(self) -> tuple[int, int, str]:
        if not self._shimmed:
            return 0, 0, ""
        with self._counter.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as shared:
            calls, happened, _, what = _COUNTER.unpack(shared[:])
        return calls, happened, what.rstrip(b"\0").decode(errors="replace")

    def _left(self, seconds: float) -> list[str]:
        deadline = time.monotonic() + seconds
        while (family := self._family()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [_name(pid) for pid in family]

    def _family(self) -> list[int]:
        """The living processes that carry this command's mark (not those that ended and were not reaped)."""
        mark = f"{_MARK}={self._mark}".encode()
        return [pid for pid, environment in _environments() if mark in environment and _state(pid) != "Z"]


def _environments() -> list[tuple[int, bytes]]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:  # noqa: PTH123
                found.append((int(entry.name), file.read()))
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return str(pid)
    return f"{pid} ({b' '.join(words).decode(errors='replace').strip()[:120]})"
