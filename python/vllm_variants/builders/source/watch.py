"""Watch one `nix build`: gather its events, keep its logs, and report at once what failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_variants.builders.display import Row
from vllm_variants.builders.source.logs import BuildLogs
from vllm_variants.nix.command import Nix
from vllm_variants.nix.events import Event
from vllm_variants.nix.progress import Build, Copy, Tracker
from vllm_variants.system.progress import Say
from vllm_variants.system.text import duration

RECENT = 16
"""Builds that may have ended between a failure and the count that shows it."""
SHOWN = 12
"""Last lines of a failed build that are shown; the log has all."""


@dataclass(frozen=True)
class Cause:
    """Why a variant is not built: the build that failed, or Nix's errors; false when neither is known."""

    build: Build | None = None
    errors: Sequence[str] = ()

    def __bool__(self) -> bool:
        return self.build is not None or bool(self.errors)


@dataclass
class Watch:
    """The builds of one run; `names` are the variants' short names by derivation."""

    nix: Nix
    names: Mapping[str, str]
    logs: BuildLogs
    say: Say
    tracker: Tracker = field(default_factory=Tracker)
    failed: dict[str, Build] = field(default_factory=dict)
    _ended: deque[Build] = field(default_factory=lambda: deque(maxlen=RECENT))
    _requisites: dict[str, frozenset[str]] = field(default_factory=dict)

    def take(self, event: Event) -> Build | Copy | None:
        """Take in one event; returns the build or copy that it is about."""
        subject = self.tracker.apply(event)
        self.logs.take(event, subject)
        if isinstance(subject, Build) and subject.ended is not None:
            self._ended.append(subject)
        if self.tracker.failed > len(self.failed):
            self._find_failures()
        return subject

    def cause(self, drv: str) -> Cause:
        """Why the derivation `drv` is not built.

        The build is its own, or one that it needs; the errors are those that name one of these.
        """
        build = self.failed.get(drv)
        requisites = self.requisites(drv)
        build = build or next((item for item in self.failed.values() if item.drv in requisites), None)
        drvs = [path for path in requisites if path.endswith(".drv")]
        return Cause(build, [error for error in self.tracker.errors if any(path in error for path in drvs)])

    def requisites(self, drv: str) -> frozenset[str]:
        """All that building a derivation may need; Nix is asked once."""
        if drv not in self._requisites:
            self._requisites[drv] = self.nix.requisites(drv)
        return self._requisites[drv]

    def row(self, drv: str, out: str, now: float) -> Row:
        """How a variant that is not finished stands, by its derivation and output."""
        build = self.tracker.builds.get(drv)
        copy = next((copy for copy in list(self.tracker.copies.values()) if copy.path == out), None)
        if copy:
            amount = f"{copy.done / 1e6:.0f} of {copy.expected / 1e6:.0f} MB"
            return Row(self.names[drv], "downloading", amount=amount)
        if build is None:
            return Row(self.names[drv], "waiting")
        state = "building" if build.ended is None else "ended"
        return Row(self.names[drv], state, build.phase, build.objects, build.machine, build.seconds(now))

    def beside(self) -> str:
        """What goes on beside the variants, in one line: downloads, and builds that they need."""
        parts = []
        if self.tracker.copies:
            done, expected = self.tracker.bytes_copied / 1e6, self.tracker.to_copy / 1e6
            parts.append(f"downloads: {done:.0f} of {expected:.0f} MB")
        others = [build for build in self.tracker.running if build.drv not in self.names]
        if others:
            counts = [f" {build.objects[0]}/{build.objects[1]}" if build.objects else "" for build in others]
            shown = [f"{build.name}{count}" for build, count in zip(others, counts, strict=True)]
            parts.append(f"building {', '.join(shown)}")
        return "; ".join(parts)

    def left_behind(self) -> str:
        """What an interrupted run leaves in the store, and what may still go on elsewhere, as a sentence."""
        ended = [build for build in self.tracker.builds.values() if build.ended is not None]
        kept = len(ended) - len(self.failed)
        text = f"stopped; {kept} finished build{'s' if kept != 1 else ''} of this run stay in the store"
        machines = sorted({build.machine for build in self.tracker.running if build.machine})
        if machines:
            text += f"; what runs on {', '.join(machines)} ends when it notices, or goes on to its end there"
        return text

    def _find_failures(self) -> None:
        """Look in the store which of the builds that ended lately are not whole, as many as failed."""
        while self._ended and self.tracker.failed > len(self.failed):
            build = self._ended.pop()
            if build.drv not in self.failed and not self.nix.whole(build.drv):
                self.failed[build.drv] = build
                self.say(failure_notice(self._subject(build), build, self.logs.paths.get(build.drv)))

    def _subject(self, build: Build) -> str:
        """A failed build as the subject of a sentence: a variant, or what variants need."""
        if build.drv in self.names:
            return self.names[build.drv]
        dependents = [name for drv, name in self.names.items() if build.drv in self.requisites(drv)]
        listed = " and ".join(filter(None, (", ".join(dependents[:-1]), *dependents[-1:])))
        verb = "needs" if len(dependents) == 1 else "need"
        return f"{build.name}, which {listed or 'nothing requested'} {verb},"


def failure_notice(subject: str, build: Build, log: Path | None) -> str:
    """That a build failed: where, after how long, its last lines and its log."""
    phase = f" in {build.phase}" if build.phase else ""
    objects = f" at object {build.objects[0]} of {build.objects[1]}" if build.objects else ""
    lines = "".join(f"\n  | {line}" for line in list(build.tail)[-SHOWN:])
    after = f"{duration(build.seconds(build.started))}{'; last lines:' if lines else ''}{lines}"
    kept = f"\n  full log: {log}" if log else ""
    return f"{subject} failed{phase}{objects} after {after}{kept}"
