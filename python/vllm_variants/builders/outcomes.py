"""The outcome of each variant of a batch, whichever builder worked on it, and the protocol of builders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from vllm_variants import documents
from vllm_variants.errors import Error, ExitCode, Interrupted
from vllm_variants.model.requests import Request
from vllm_variants.system.progress import Say


class Status(StrEnum):
    """How a variant ended."""

    BUILT = "built"
    FAILED = "failed"
    SKIPPED = "skipped"  # not tried, because another failed
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """How one variant ended: link, path and manifest of a result, or the error and the last lines before it.

    `how` says where a result comes from: `built`, `fetched` from a cache, or `already built`. `seconds` is
    the time of its own build, without what it waited for; `log` the file with all that its build printed,
    or the build that failed; `audit` the audit's report; `pushed` the store that it was copied to.
    """

    variant: str
    short: str
    status: Status
    link: Path | None = None
    path: Path | None = None
    manifest: dict[str, Any] | None = None
    how: str = ""
    seconds: float = 0.0
    attempts: int = 1
    phase: str = ""
    error: Error | None = None
    tail: tuple[str, ...] = ()
    log: Path | None = None
    audit: Path | None = None
    pushed: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an audited, linked result."""
        return self.status is Status.BUILT

    def as_dict(self) -> dict[str, object]:
        """The outcome as JSON; what does not apply is left out."""
        facts: dict[str, object | None] = {
            "schema": documents.OUTCOME,
            "variant": self.variant,
            "status": self.status.value,
            "reason": self.error.message if self.error else None,
            "hint": self.error.hint if self.error else None,
            "phase": self.phase or None,
            "tail": list(self.tail) or None,
            "link": str(self.link.absolute()) if self.link else None,
            "path": str(self.path) if self.path else None,
            "how": self.how or None,
            "seconds": round(self.seconds, 1) or None,
            "attempts": self.attempts if self.attempts > 1 else None,
            "log": str(self.log) if self.log else None,
            "audit": str(self.audit) if self.audit else None,
            "pushed": self.pushed,
            "manifest": self.manifest,
        }
        return {key: value for key, value in facts.items() if value is not None}


def outcome_of(request: Request, status: Status, **facts: Any) -> Outcome:
    """The outcome of a request; `facts` are further fields of it."""
    return Outcome(request.name, request.variant.short, status, **facts)


def skipped(request: Request) -> Outcome:
    """The outcome of a request that was not tried, without `keep_going`."""
    error = Error("not tried: another variant failed first", hint="leave out --no-keep-going")
    return outcome_of(request, Status.SKIPPED, error=error)


Done = Callable[[Outcome], None]
"""Called with each outcome as soon as it is known."""


class Builder(Protocol):
    """Makes results. One that is not whole, or whose audit fails, is never linked."""

    def build_all(self, requests: Sequence[Request], say: Say, done: Done) -> list[Outcome]:
        """Build every request; one outcome each, in their order, and to `done` as each is known.

        Shows the person lines of text by `say`. Raises `Interrupted` when asked to stop.
        """
        ...


def one_after_another(
    requests: Sequence[Request], build: Callable[[Request], Outcome], done: Done, *, keep_going: bool
) -> list[Outcome]:
    """`Builder.build_all` out of building one; without `keep_going` the rest of a failure is skipped."""
    outcomes: list[Outcome] = []

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        done(outcome)

    for index, request in enumerate(requests):
        if not keep_going and not all(outcome.ok for outcome in outcomes):
            take(skipped(request))
            continue
        try:
            take(build(request))
        except Interrupted:
            for rest in requests[index:]:
                take(outcome_of(rest, Status.INTERRUPTED))
            raise
    return outcomes


def exit_code(outcomes: list[Outcome]) -> ExitCode:
    """The exit code of a batch: the one failure's own, or `FAILED` where several were requested."""
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if not failed:
        return ExitCode.OK
    if any(outcome.status is Status.INTERRUPTED for outcome in failed):
        return ExitCode.INTERRUPTED
    if len(outcomes) == 1 and failed[0].error:
        return failed[0].error.exit_code
    return ExitCode.FAILED
