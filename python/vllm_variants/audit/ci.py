"""Audits as continuous integration reads them: SARIF 2.1.0, and JUnit XML with a test case a feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from vllm_variants import __version__
from vllm_variants.audit.judging import State
from vllm_variants.audit.report import AuditReport, Verdict
from vllm_variants.errors import readable
from vllm_variants.system import junit

_RULES = {
    Verdict.MISSING: ("error", "Code that must be there is missing, or a file cannot be read"),
    Verdict.DRIVER: ("error", "The driver is too old for code that would run"),
    Verdict.JIT: ("warning", "The driver compiles code at its first use"),
    Verdict.FOREIGN: ("note", "Code that can never run on the device takes room"),
}
_RESULTS = {
    State.RUNS: junit.Result.PASSED,
    State.WAITS: junit.Result.PASSED,
    State.UNSUPPORTED: junit.Result.SKIPPED,
    State.DRIVER: junit.Result.FAILED,
    State.MISSING: junit.Result.FAILED,
}


def sarif(reports: Sequence[AuditReport]) -> dict[str, Any]:
    """A SARIF 2.1.0 log with one run: a result for each finding, at the library that it is about.

    Source: OASIS SARIF 2.1.0. A library inside a wheel or an image is named after what holds it.
    """
    rules = [
        {"id": str(rule), "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}
        for rule, (level, text) in _RULES.items()
    ]
    driver = {"name": "vllm-variants", "version": __version__, "rules": rules}
    results = [result for report in reports for result in _results(report)]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}],
    }


def _results(report: AuditReport) -> list[dict[str, Any]]:
    device = f" on {report.capability.sm}" if report.capability else ""
    found = [(f.verdict, f.library, f.what) for f in report.findings]
    lost = [f for f in report.features if f.state is State.MISSING]
    found += [(Verdict.MISSING, path, f"{f.name}: {f.reason}") for f in lost for path in f.use.libraries]
    return [
        {
            "ruleId": str(verdict),
            "level": _RULES[verdict][0],
            "message": {"text": readable(f"{library}{device}: {what}")},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(report, library)}}}],
        }
        for verdict, library, what in found
    ]


def _uri(report: AuditReport, library: str) -> str:
    """Where a finding is: its library below what was audited, which a finding on all of it stands for."""
    root = report.roots[0] if len(report.roots) == 1 else ""
    known = any(library == each.path for each in report.libraries)
    if root and (not known or report.about.kind == "library"):
        path = root
    else:
        path = f"{root}/{library}" if root else library
    return quote(path.encode("utf-8", "surrogateescape"))


def junit_document(reports: Sequence[AuditReport]) -> str:
    """A suite with a test case for each feature and device, and one for each file that could not be read."""
    return junit.document("vllm-variants audit", [case for report in reports for case in _cases(report)], 0.0)


def _cases(report: AuditReport) -> list[junit.Case]:
    device = report.capability.sm if report.capability else "unjudged"
    group = f"{report.roots[0]}.{device}"
    cases = [
        junit.Case(f.name, group, result=_RESULTS[f.state], message=f.reason, output=f.reason)
        for f in report.features
    ]
    missing = [f for f in report.findings if f.verdict is Verdict.MISSING]
    return cases + [junit.Case(f.library, group, result=junit.Result.ERROR, message=f.what) for f in missing]
