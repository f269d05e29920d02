"""A run of checks written down: JSON document, JUnit XML, text lines."""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.system import reporting
from vllm_variants.system.reporting import xml_text
from vllm_variants.verify.judgement import Judged, Verdict, summarise


def document(judged: Sequence[Judged], about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole run as one JSON document; `about` says what was checked, where and how."""
    summary = summarise(judged)
    return {
        "schema": documents.VERIFY,
        **about,
        "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "good": summary.good,
        "summary": summary.sentence,
        "checks": [each.as_dict() for each in judged],
    }


def junit(judged: Sequence[Judged], name: str, path: Path) -> None:
    """Write a JUnit XML file, as continuous integration reads it: one test case a check."""
    summary = summarise(judged)
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(judged)),
        failures=str(summary.failed),
        skipped=str(summary.skipped + summary.open),
        time=f"{sum(each.outcome.get('seconds') or 0 for each in judged):.3f}",
    )
    for each in judged:
        group, _, short = each.check.name.partition(".")
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{name}.{group}",
            name=short,
            time=f"{each.outcome.get('seconds') or 0:.3f}",
        )
        if each.verdict is Verdict.FAILED:
            ElementTree.SubElement(case, "failure", message=xml_text(each.sentence, ""))
        elif each.verdict in (Verdict.SKIPPED, Verdict.OPEN):
            ElementTree.SubElement(case, "skipped", message=xml_text(each.sentence, ""))
    text = ElementTree.tostring(suite, encoding="unicode")
    reporting.write(path, f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def figures(outcome: Mapping[str, Any]) -> tuple[str, str, str]:
    """(error of its tolerance, median time with the first call's, image) for people."""
    error = ""
    if outcome.get("error") is not None:
        error = f"{_short(outcome['error'])} of {_short(outcome['tolerance'])}"
    times = ""
    if outcome.get("median_ms") is not None:
        times = f"{_duration(outcome['median_ms'])} (first {_duration(outcome['first_ms'])})"
    elif outcome.get("first_ms") is not None:
        times = f"first {_duration(outcome['first_ms'])}"
    return error, times, outcome.get("image") or ""


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "0" if value == 0 else f"{value:.2g}"


def _duration(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.3g} ms"


MARKS = {Verdict.PASSED: " ", Verdict.FAILED: "!", Verdict.SKIPPED: "-", Verdict.OPEN: "?"}


def line(judged: Judged) -> str:
    """One line of plain text a check; failures carry their sentence."""
    error, times, image = figures(judged.outcome)
    words = [part for part in (error, times, image) if part]
    if judged.verdict is not Verdict.PASSED or judged.outcome["status"] == "unsupported":
        words.append(judged.sentence)
    seconds = judged.outcome.get("seconds")
    took = f"{seconds:6.1f} s" if isinstance(seconds, (int, float)) else "        "
    name, status = judged.check.name, judged.outcome["status"]
    return f"{MARKS[judged.verdict]} {name:32} {status:12} {took}  {' · '.join(words)}"
