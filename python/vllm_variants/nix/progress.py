"""The state of a `nix build`, computed from its events alone.

Nix's events say when a build starts and stops, not which one failed: the count of failures rises (its
activity `BUILDS`), and the error itself comes at the very end under `--keep-going`. So a build that
stopped is `ended`, and the user of the tracker asks the store which of the ended ones are whole.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm_variants.nix.events import (
    Activity,
    Event,
    Expected,
    LogLine,
    Message,
    Phase,
    Progress,
    Started,
    Stopped,
)

TAIL = 25  # last lines that are kept of every build
# ninja's counter, also behind the words that setuptools or CMake put before it.
_OBJECTS = re.compile(r"^(?:.{0,40}\s)?\[(\d+)/(\d+)\]\s")
_STORE_NAME = re.compile(r"(?:.*/)?([0-9a-z]{32})-(.*?)(?:\.drv)?")
_PYTHON_PREFIX = re.compile(r"^python3\.\d+-")


@dataclass(eq=False)
class Build:
    """One derivation being built: on which machine, in which phase, how many objects are compiled."""

    drv: str
    machine: str = ""
    phase: str = ""
    objects: tuple[int, int] | None = None
    started: float = 0.0
    ended: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))

    @property
    def name(self) -> str:
        """The derivation's name without its hash."""
        return store_name(self.drv)

    def seconds(self, now: float) -> float:
        """How long it has been building, or took."""
        return (now if self.ended is None else self.ended) - self.started


@dataclass
class Copy:
    """A path coming from a cache or a remote store: bytes done of those expected."""

    path: str
    done: int = 0
    expected: int = 0
    ended: bool = False


@dataclass
class Tracker:
    """Builds by their derivation, copies by their activity, and Nix's errors."""

    clock: Callable[[], float] = time.monotonic
    builds: dict[str, Build] = field(default_factory=dict)
    copies: dict[int, Copy] = field(default_factory=dict)
    copied: int = 0  # bytes of copies that have ended
    to_copy: int = 0  # bytes of all copies that Nix knows of
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    _running: dict[int, Build] = field(default_factory=dict)
    _counting: set[int] = field(default_factory=set)

    @property
    def running(self) -> list[Build]:
        """The builds that have started and not ended."""
        return list({build.drv: build for build in list(self._running.values())}.values())

    @property
    def bytes_copied(self) -> int:
        """Bytes copied so far."""
        return self.copied + sum(copy.done for copy in list(self.copies.values()))

    def apply(self, event: Event) -> Build | Copy | None:
        """Take in one event; returns the build or copy that it is about, if it is about one."""
        match event:
            case Started():
                return self._start(event)
            case Stopped():
                return self._stop(event.id)
            case LogLine():
                return self._line(event)
            case Phase() if event.id in self._running:
                build = self._running[event.id]
                build.phase = event.name
                return build
            case Progress():
                return self._progress(event)
            case Expected() if event.kind is Activity.COPY_PATH:
                self.to_copy = max(self.to_copy, event.amount)
            case Message() if event.is_error:
                self.errors.append(event.text)
        return None

    def adopt(self, id: int, build: Build) -> None:
        """Count a build that no event started as the running one of activity `id`."""
        self.builds[build.drv] = self._running[id] = build

    def _start(self, event: Started) -> Build | Copy | None:
        if event.kind is Activity.BUILD and event.fields:
            machine = str(event.fields[1]) if len(event.fields) > 1 else ""
            drv = str(event.fields[0])
            build = self.builds.get(drv)
            # A remote build is one activity here and one over there: both are the same build.
            if build is None or build.ended is not None:
                build = self.builds[drv] = Build(drv, started=self.clock())
            build.machine = machine or build.machine
            self._running[event.id] = build
            return build
        if event.kind is Activity.COPY_PATH and event.fields:
            copy = self.copies[event.id] = Copy(str(event.fields[0]))
            return copy
        if event.kind is Activity.BUILDS:
            self._counting.add(event.id)
        return None

    def _stop(self, id: int) -> Build | Copy | None:
        if id in self._running:
            build = self._running.pop(id)
            if build not in self._running.values():
                build.ended = self.clock()
            return build
        if id in self.copies:
            copy = self.copies.pop(id)
            self.copied += copy.done
            copy.ended = True
            return copy
        return None

    def _line(self, event: LogLine) -> Build | None:
        build = self._running.get(event.id)
        if build is None:
            return None
        build.tail.append(event.text)
        counted = _OBJECTS.match(event.text)
        if counted:
            build.objects = (int(counted[1]), int(counted[2]))
        return build

    def _progress(self, event: Progress) -> Copy | None:
        if event.id in self._counting:
            self.failed = max(self.failed, event.failed)
        copy = self.copies.get(event.id)
        if copy:
            copy.done, copy.expected = event.done, event.expected
        return copy


def store_name(path: str) -> str:
    """`/nix/store/<hash>-python3.12-torch-2.9.1.drv` → `torch-2.9.1`."""
    match = _STORE_NAME.fullmatch(path)
    return _PYTHON_PREFIX.sub("", match[2] if match else path)


def store_hash(path: str) -> str:
    """`/nix/store/<hash>-torch-2.9.1.drv` → the 32 characters of its hash; empty for another path."""
    match = _STORE_NAME.fullmatch(path)
    return match[1] if match else ""
