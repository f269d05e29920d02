"""The JUnit document: a case each, counted by how it ended, and XML whatever the texts hold."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.system.junit import Case, Result, document

CASES = [
    Case("a", "group", 1.25),
    Case("b", "group", result=Result.FAILED, message="it failed", details="last lines", output="a log"),
    Case("c", "group", result=Result.ERROR, message="it was interrupted"),
    Case("d", "group", result=Result.SKIPPED, message="no GPU"),
]


def test_cases_are_counted_by_how_they_ended() -> None:
    (suite,) = ElementTree.fromstring(document("checks", CASES, 10))
    assert suite.attrib == {
        "name": "checks", "tests": "4", "failures": "1", "errors": "1", "skipped": "1", "time": "10.000",
    }  # fmt: skip


def test_a_case_has_its_time_and_what_became_of_it() -> None:
    (suite,) = ElementTree.fromstring(document("checks", CASES, 10))
    passed, failed, error, skipped = suite
    assert (passed.attrib, len(passed)) == ({"classname": "group", "name": "a", "time": "1.250"}, 0)
    assert [(child.tag, child.get("message")) for child in failed] == [
        ("failure", "it failed"), ("system-out", None),
    ]  # fmt: skip
    assert [child.text for child in failed] == ["last lines", "a log"]
    assert [(child.tag, child.text) for child in error] == [("error", None)]
    assert [(child.tag, child.get("message")) for child in skipped] == [("skipped", "no GPU")]


@given(st.text(), st.text(), st.sampled_from(Result))
def test_it_stays_xml_whatever_the_texts_hold(name: str, text: str, result: Result) -> None:
    case = Case(name, text, result=result, message=text, details=text, output=text)
    (suite,) = ElementTree.fromstring(document(name, [case], 0))
    assert suite.get("tests") == "1"
