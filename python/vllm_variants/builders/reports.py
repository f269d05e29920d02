"""A batch's outcomes for machines and for people: JSON Lines, JUnit XML, Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from vllm_variants.builders.outcomes import Outcome, Status
from vllm_variants.system.junit import Case, Result, document
from vllm_variants.system.text import duration

_JUNIT = {
    Status.BUILT: Result.PASSED,
    Status.FAILED: Result.FAILED,
    Status.INTERRUPTED: Result.ERROR,
    Status.SKIPPED: Result.SKIPPED,
}
_MARK = {Status.BUILT: "✅", Status.FAILED: "❌", Status.INTERRUPTED: "⏹", Status.SKIPPED: "⏭"}


def json_line(outcome: Outcome) -> str:
    """One outcome as one line of JSON, with its line end."""
    return json.dumps(outcome.as_dict(), ensure_ascii=False) + "\n"


def junit(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The batch as a JUnit document: a test case a variant, an interrupted one an error."""
    return document("vllm-variants build", [_test_case(outcome) for outcome in outcomes], seconds)


def _test_case(outcome: Outcome) -> Case:
    case = Case(outcome.variant, "vllm-variants.build", outcome.seconds, _JUNIT[outcome.status])
    if not outcome.ok:
        message = outcome.error.message if outcome.error else outcome.status.value
        details = "\n".join([str(outcome.error or ""), *outcome.tail])
        case = replace(case, message=message, details=details)
    return replace(case, output=f"full log: {outcome.log}") if outcome.log else case


def markdown(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The batch as a Markdown page: a sentence, a table, and the last lines of every failure."""
    good = sum(outcome.ok for outcome in outcomes)
    lines = [f"## {good} of {len(outcomes)} variants built in {duration(seconds)}", ""]
    lines += ["| variant | | time | result |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        mark = _MARK[outcome.status]
        time = outcome.how if outcome.how in ("already built", "fetched") else duration(outcome.seconds)
        lines.append(f"| `{outcome.short}` | {mark} | {time} | {_cell(outcome)} |")
    for outcome in outcomes:
        if not outcome.ok and outcome.tail:
            lines += ["", f"### `{outcome.short}`", "", "```text", *_fenced(outcome.tail), "```"]
            lines += [f"Full log: `{outcome.log}`"] if outcome.log else []
    return "\n".join(lines) + "\n"


def _cell(outcome: Outcome) -> str:
    if not outcome.ok:
        text = outcome.error.message if outcome.error else outcome.status.value
        return text.replace("|", "\\|").replace("\n", " ")
    pushed = f", pushed to `{outcome.pushed}`" if outcome.pushed else ""
    return f"`{outcome.path}`{pushed}"


def _fenced(lines: Sequence[str]) -> list[str]:
    return [line.replace("```", "'''") for line in lines]
