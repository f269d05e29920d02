"""JUnit XML, as continuous integration reads it: one document with one suite of test cases.

Needs the standard library alone: `python -m vllm_variants.verify` runs where nothing is installed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from xml.etree import ElementTree

# Characters that XML 1.0 cannot hold, not even escaped (section 2.2, "Characters"); compilers print them.
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Result(StrEnum):
    """How a test case ended; the value is the element that says so (a case that passed has none)."""

    PASSED = ""
    FAILED = "failure"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Case:
    """One test case: its name, the class or group it is listed under, and its time in seconds.

    `message` is one sentence on a case that did not pass, `details` the text below it, `output` what is
    shown as the case's standard output.
    """

    name: str
    group: str
    seconds: float = 0.0
    result: Result = Result.PASSED
    message: str = ""
    details: str = ""
    output: str = ""


def document(suite: str, cases: Sequence[Case], seconds: float) -> str:
    """The XML document, with its declaration, of a suite that took `seconds`."""
    counts = {
        "tests": len(cases),
        "failures": sum(case.result is Result.FAILED for case in cases),
        "errors": sum(case.result is Result.ERROR for case in cases),
        "skipped": sum(case.result is Result.SKIPPED for case in cases),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites")
    element = ElementTree.SubElement(root, "testsuite", {"name": xml_text(suite), **attributes})
    element.set("time", f"{seconds:.3f}")
    for case in cases:
        _add(element, case)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def xml_text(text: str) -> str:
    """`text` with U+FFFD for each character that XML cannot hold."""
    return _NO_XML.sub("\ufffd", text)


def _add(suite: ElementTree.Element, case: Case) -> None:
    attributes = {"classname": xml_text(case.group), "name": xml_text(case.name)}
    element = ElementTree.SubElement(suite, "testcase", {**attributes, "time": f"{case.seconds:.3f}"})
    if case.result is not Result.PASSED:
        outcome = ElementTree.SubElement(element, case.result.value, {"message": xml_text(case.message)})
        outcome.text = xml_text(case.details) or None
    if case.output:
        ElementTree.SubElement(element, "system-out").text = xml_text(case.output)
