"""Tell how a batch ends: a line a variant, the reports that were asked for, the exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import typer

from vllm_variants import documents
from vllm_variants.builders import reports
from vllm_variants.builders.outcomes import Outcome, Status, exit_code
from vllm_variants.cli.build_options import ReportOptions
from vllm_variants.cli.output import print_json, say, size
from vllm_variants.errors import Interrupted, resource_error
from vllm_variants.model.requests import Request
from vllm_variants.system import reporting
from vllm_variants.system.text import duration


class BatchReport:
    """Gathers outcomes while a batch runs; on leaving writes the reports and ends the program.

    Reports are written when the batch was interrupted too. `jsonl` gets its lines as outcomes come;
    `-` is stdout.
    """

    def __init__(self, requests: Sequence[Request], options: ReportOptions) -> None:
        self._requests = requests
        self._order = [request.name for request in requests]
        self._options = options
        self._outcomes: list[Outcome] = []
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._options.jsonl and str(self._options.jsonl) != "-":
            reporting.write(self._options.jsonl, "")
        return self

    def take(self, outcome: Outcome) -> None:
        """Hear of one variant's end."""
        self._outcomes.append(outcome)
        if self._options.jsonl:
            self._append(reports.json_line(outcome))
        if outcome.ok:
            say(_built(outcome))
        elif len(self._requests) > 1 and outcome.status is Status.FAILED:
            named = outcome.error is not None and outcome.error.message.startswith(outcome.short)
            say(f"{'' if named else f'{outcome.short} failed: '}{outcome.error}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind and not issubclass(kind, Interrupted):
            return
        if kind:
            self._interrupt_the_rest()
        seconds = time.monotonic() - self._started
        self._outcomes.sort(key=lambda outcome: self._order.index(outcome.variant))
        if self._options.junit:
            reporting.write(self._options.junit, reports.junit(self._outcomes, seconds))
        if self._options.summary:
            reporting.write(self._options.summary, reports.markdown(self._outcomes, seconds))
        if self._options.as_json:
            outcomes = [outcome.as_dict() for outcome in self._outcomes]
            print_json({"schema": documents.BUILD, "outcomes": outcomes})
        if len(self._requests) > 1 or kind:
            say(_sentence(self._outcomes, seconds))
        if kind:
            return
        failed = [outcome for outcome in self._outcomes if not outcome.ok]
        if failed and len(self._requests) == 1 and failed[0].error:
            raise failed[0].error
        if failed:
            raise typer.Exit(exit_code(self._outcomes))

    def _interrupt_the_rest(self) -> None:
        heard = {outcome.variant for outcome in self._outcomes}
        for request in self._requests:
            if request.name not in heard:
                self.take(Outcome(request.name, request.variant.short, Status.INTERRUPTED))

    def _append(self, line: str) -> None:
        if str(self._options.jsonl) == "-":
            sys.stdout.write(line)
            sys.stdout.flush()
            return
        assert self._options.jsonl is not None
        try:
            with self._options.jsonl.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise resource_error(error) from error


def _built(outcome: Outcome) -> str:
    sizes = (outcome.manifest or {}).get("bytes")
    if sizes:
        about = f"{size(sizes['result'])}; {size(sizes['installed'])} before slimming"
    elif outcome.how == "built":
        about = f"built in {duration(outcome.seconds)}"
    else:
        about = outcome.how
    pushed = f"; pushed to {outcome.pushed}" if outcome.pushed else ""
    return f"{outcome.link} ({about}{pushed})"


def _sentence(outcomes: list[Outcome], seconds: float) -> str:
    by_status = {
        status: [outcome.short for outcome in outcomes if outcome.status is status] for status in Status
    }
    built = by_status.pop(Status.BUILT)
    rest = [f"{status}: {', '.join(shorts)}" for status, shorts in by_status.items() if shorts]
    head = f"{len(built)} of {len(outcomes)} variants are ready after {duration(seconds)}"
    return "; ".join([head, *rest])
