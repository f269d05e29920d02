"""The steps of a build, timed and recorded for its manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vllm_variants.system.progress import Say


@dataclass
class Step:
    """One step of a build: `ran` or `skipped`, its seconds, and facts of its own: why it was skipped."""

    name: str
    status: str = "ran"
    seconds: float | None = None
    facts: dict[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The step as the manifest holds it."""
        seconds = {} if self.seconds is None else {"seconds": round(self.seconds, 1)}
        return {"name": self.name, "status": self.status, **seconds, **self.facts}


@dataclass
class Steps:
    """The steps of one build, in order."""

    say: Say
    done: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Run one step; a step that raises is not recorded, since its build is not published."""
        self.say(f"{name} …")
        step, started = Step(name), time.monotonic()
        yield step
        step.seconds = time.monotonic() - started
        self.done.append(step)
        self.say(f"{name}: {step.seconds:.1f} s")

    def skip(self, name: str, reason: str) -> None:
        """Record a step that did not run, and why."""
        self.done.append(Step(name, "skipped", facts={"reason": reason}))
        self.say(f"{name}: skipped ({reason})")
