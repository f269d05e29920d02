"""A batch's outcomes for machines and for people: JSON Lines, JUnit XML, Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

from vllm_variants.builders.outcomes import Outcome, Status
from vllm_variants.system.reporting import xml_text

_JUNIT = {Status.FAILED: "failure", Status.INTERRUPTED: "error", Status.SKIPPED: "skipped"}
_MARK = {Status.BUILT: "✅", Status.FAILED: "❌", Status.INTERRUPTED: "⏹", Status.SKIPPED: "⏭"}


def json_line(outcome: Outcome) -> str:
    """One outcome as one line of JSON, with its line end."""
    return json.dumps(outcome.as_dict(), ensure_ascii=False) + "\n"


def junit(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The batch as a JUnit document: a test case a variant, an interrupted one an error."""
    failed = [o for o in outcomes if o.status is Status.FAILED]
    stopped = [o for o in outcomes if o.status is Status.INTERRUPTED]
    skipped = [o for o in outcomes if o.status is Status.SKIPPED]
    counts = {
        "tests": len(outcomes),
        "failures": len(failed),
        "errors": len(stopped),
        "skipped": len(skipped),
    }
    attributes = {"name": "vllm-variants build", "time": f"{seconds:.3f}"}
    attributes |= {name: str(count) for name, count in counts.items()}
    suite = ElementTree.Element("testsuite", attributes)
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": "vllm-variants.build", "name": outcome.variant, "time": f"{outcome.seconds:.3f}"},
        )
        if not outcome.ok:
            kind = _JUNIT[outcome.status]
            message = outcome.error.message if outcome.error else outcome.status.value
            body = ElementTree.SubElement(case, kind, {"message": xml_text(message)})
            body.text = xml_text("\n".join([str(outcome.error or ""), *outcome.tail]))
        if outcome.log:
            ElementTree.SubElement(case, "system-out").text = f"full log: {outcome.log}"
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


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


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 20 s`, `5 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _cell(outcome: Outcome) -> str:
    if not outcome.ok:
        text = outcome.error.message if outcome.error else outcome.status.value
        return text.replace("|", "\\|").replace("\n", " ")
    pushed = f", pushed to `{outcome.pushed}`" if outcome.pushed else ""
    return f"`{outcome.path}`{pushed}"


def _fenced(lines: Sequence[str]) -> list[str]:
    return [line.replace("```", "'''") for line in lines]
