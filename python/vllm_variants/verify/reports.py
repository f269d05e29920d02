"""A run of checks written down: JSON document, JUnit XML, text lines."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.system import junit, reporting
from vllm_variants.system.text import duration
from vllm_variants.verify.judgement import JudgedCheck, Judgement, summarise


def document(judged: Sequence[JudgedCheck], about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole run as one JSON document; `about` says what was checked, where and how."""
    summary = summarise(judged)
    return {
        "schema": documents.VERIFY,
        **about,
        "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "good": summary.good,
        "summary": summary.sentence,
        "checks": [check.as_dict() for check in judged],
    }


def write_junit(judged: Sequence[JudgedCheck], variant: str, path: Path) -> None:
    """Write a JUnit XML file for the checks of `variant`; `ResourceError` where the disk refuses."""
    cases = [_test_case(check, variant) for check in judged]
    reporting.write(path, junit.document(variant, cases, sum(case.seconds for case in cases)))


_TEST_RESULTS = {
    Judgement.PASSED: junit.Result.PASSED,
    Judgement.FAILED: junit.Result.FAILED,
    Judgement.SKIPPED: junit.Result.SKIPPED,
    Judgement.OPEN: junit.Result.SKIPPED,
}


def _test_case(judged: JudgedCheck, variant: str) -> junit.Case:
    group, _, name = judged.check.name.partition(".")
    return junit.Case(
        name,
        f"{variant}.{group}",
        seconds=judged.outcome.get("seconds") or 0.0,
        result=_TEST_RESULTS[judged.judgement],
        message=judged.sentence,
    )


def figures(outcome: Mapping[str, Any]) -> tuple[str, str, str]:
    """(error of its tolerance, median time with the first call's, image) for people.

    For a server the times are those to `/health` and from a first request to its first token.
    """
    error = ""
    if outcome.get("error") is not None:
        error = f"{_short(outcome['error'])} of {_short(outcome['tolerance'])}"
    times, facts = "", outcome.get("facts") or {}
    if "health_s" in facts:
        times = f"/health after {duration(facts['health_s'])}"
        if "first_token_s" in facts:
            times += f", first token {call_time(1000 * facts['first_token_s'])}"
    elif outcome.get("median_ms") is not None:
        times = f"{call_time(outcome['median_ms'])} (first {call_time(outcome['first_ms'])})"
    elif outcome.get("first_ms") is not None:
        times = f"first {call_time(outcome['first_ms'])}"
    return error, times, outcome.get("image") or ""


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "0" if value == 0 else f"{value:.2g}"


def call_time(milliseconds: float) -> str:
    """The time of a call for people: `0.512 ms`, `14.0 s`, `3 min 59 s`."""
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else duration(milliseconds / 1000)


_MARKS = {Judgement.PASSED: " ", Judgement.FAILED: "!", Judgement.SKIPPED: "-", Judgement.OPEN: "?"}


def line(judged: JudgedCheck) -> str:
    """One line of plain text a check; failures carry their sentence."""
    parts = [part for part in figures(judged.outcome) if part]
    if judged.judgement is not Judgement.PASSED or judged.outcome["status"] == "unsupported":
        parts.append(judged.sentence)
    seconds = judged.outcome.get("seconds")
    took = f"{seconds:6.1f} s" if isinstance(seconds, (int, float)) else "        "
    name, status = judged.check.name, judged.outcome["status"]
    return f"{_MARKS[judged.judgement]} {name:32} {status:12} {took}  {' · '.join(parts)}"
