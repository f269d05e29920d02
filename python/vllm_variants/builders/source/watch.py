"""Watch one `nix build`: gather its events, keep its logs, and say at once what failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vllm_variants.builders.display import Row
from vllm_variants.builders.source.logs import BuildLogs
from vllm_variants.nix.command import Nix
from vllm_variants.nix.events import Event
from vllm_variants.nix.progress import Build, Copy, Tracker
from vllm_variants.system.progress import Say
from vllm_variants.system.text import duration

RECENT = 16  # builds that may have ended between a failure and the count that tells of it
SHOWN = 12  # last lines of a failure that are shown; the log has all


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
    _needs: dict[str, frozenset[str]] = field(default_factory=dict)

    def take(self, event: Event) -> Build | Copy | None:
        """Take in one event; returns the build or copy that it is about."""
        about = self.tracker.apply(event)
        self.logs.take(event, self.tracker, about)
        if isinstance(about, Build) and about.ended is not None:
            self._ended.append(about)
        if self.tracker.failed > len(self.failed):
            self._find_failures()
        return about

    def cause(self, drv: str) -> Build | None:
        """The build that failed and that the derivation `drv` is or needs, its own first."""
        if drv in self.failed:
            return self.failed[drv]
        return next((build for build in self.failed.values() if build.drv in self.needs(drv)), None)

    def errors(self, drv: str) -> list[str]:
        """What Nix said about `drv` or something it needs, by the paths in its words."""
        return [error for error in self.tracker.errors if any(path in error for path in self._drvs(drv))]

    def needs(self, drv: str) -> frozenset[str]:
        """The closure of a derivation, asked for once."""
        if drv not in self._needs:
            self._needs[drv] = self.nix.requisites(drv)
        return self._needs[drv]

    def row(self, drv: str, out: str, now: float) -> Row:
        """How one variant that is not finished stands, by its derivation and output."""
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
        """What goes on beside the variants: downloads and what they need, in one line."""
        parts = []
        if self.tracker.copies:
            done, of = self.tracker.bytes_copied / 1e6, self.tracker.to_copy / 1e6
            parts.append(f"downloads: {done:.0f} of {of:.0f} MB")
        others = [build for build in self.tracker.running if build.drv not in self.names]
        if others:
            parts.append(f"building {', '.join(_doing(build) for build in others)}")
        return "; ".join(parts)

    def _drvs(self, drv: str) -> Iterable[str]:
        return (path for path in self.needs(drv) if path.endswith(".drv"))

    def _find_failures(self) -> None:
        """Ask the store which of the builds that ended lately are not whole, as many as failed."""
        while self._ended and self.tracker.failed > len(self.failed):
            build = self._ended.pop()
            if build.drv not in self.failed and not self.nix.whole(build.drv):
                self.failed[build.drv] = build
                self._tell(build)

    def _tell(self, build: Build) -> None:
        who = self.names.get(build.drv)
        needed = [
            name for drv, name in self.names.items() if drv != build.drv and build.drv in self.needs(drv)
        ]
        subject = who or f"{build.name}, which {_and(needed)} {'needs' if len(needed) == 1 else 'need'},"
        took = f" after {duration(build.seconds(build.started))}"
        phase = f" in {build.phase}" if build.phase else ""
        objects = f" at object {build.objects[0]} of {build.objects[1]}" if build.objects else ""
        lines = "".join(f"\n  | {line}" for line in list(build.tail)[-SHOWN:])
        log = self.logs.paths.get(build.drv)
        kept = f"\n  full log: {log}" if log else ""
        self.say(f"{subject} failed{phase}{objects}{took}{'; last lines:' if lines else ''}{lines}{kept}")


def _doing(build: Build) -> str:
    count = f" {build.objects[0]}/{build.objects[1]}" if build.objects else ""
    return f"{build.name}{count}"


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "nothing asked for"
