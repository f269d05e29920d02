"""A batch's reports: JSON Lines, JUnit, Markdown, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.builders import reports
from vllm_variants.builders.outcomes import Outcome, Status, exit_code
from vllm_variants.errors import AuditError, Error, ExitCode, ResourceError
from vllm_variants.system import reporting

BUILT = Outcome(
    "vllm-python312-cuda12_9-sm90",
    "sm90",
    Status.BUILT,
    how="built",
    seconds=3725.0,
    path=Path("/nix/store/x-sm90"),
    pushed="s3://cache",
)
FAILED = Outcome(
    "vllm-python312-cuda12_9-sm89",
    "sm89",
    Status.FAILED,
    error=Error("sm89 failed: a | b", hint="hint it"),
    tail=("FAILED: x.cu.o", "\x1b error: ``` \x00"),
    log=Path("/logs/sm89.log"),
)
STOPPED = Outcome("vllm-python312-cuda12_9-sm80", "sm80", Status.INTERRUPTED)
SKIPPED = replace(STOPPED, status=Status.SKIPPED)


def test_json_lines_leave_out_what_does_not_apply() -> None:
    facts = json.loads(reports.json_line(FAILED))
    assert facts["status"] == "failed"
    assert facts["reason"] == "sm89 failed: a | b"
    assert facts["log"] == "/logs/sm89.log"
    assert "path" not in facts
    assert reports.json_line(FAILED).count("\n") == 1


def test_junit_has_a_case_a_variant_and_counts_them() -> None:
    suite = ElementTree.fromstring(reports.junit([BUILT, FAILED, STOPPED, SKIPPED], 10.0))[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in suite}
    assert len(cases[BUILT.variant]) == 0
    failure = cases[FAILED.variant].find("failure")
    assert failure is not None and failure.text is not None
    assert "FAILED: x.cu.o" in failure.text


@given(st.lists(st.text()), st.text())
def test_junit_stays_xml_whatever_a_compiler_prints(tail: list[str], message: str) -> None:
    outcome = replace(FAILED, tail=tuple(tail), error=Error(message))
    ElementTree.fromstring(reports.junit([outcome], 1.0))


def test_markdown_tells_all_and_keeps_its_table_and_fence() -> None:
    page = reports.markdown([BUILT, FAILED], 4000)
    assert page.startswith("## 1 of 2 variants built in 1 h 6 min")
    assert "| `sm90` | ✅ | 1 h 2 min | `/nix/store/x-sm90`, pushed to `s3://cache` |" in page
    assert "sm89 failed: a \\| b" in page
    assert page.count("```") == 2
    assert "/logs/sm89.log" in page


def test_a_report_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    reporting.write(tmp_path / "new" / "report.xml", "whole")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.xml"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        reporting.write(tmp_path / "file" / "report.xml", "whole")


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([BUILT], ExitCode.OK),
        ([BUILT, FAILED], ExitCode.FAILED),
        ([replace(FAILED, error=AuditError("x"))], ExitCode.AUDIT),
        ([BUILT, replace(FAILED, error=AuditError("x"))], ExitCode.FAILED),
        ([BUILT, STOPPED], ExitCode.INTERRUPTED),
        ([SKIPPED, FAILED], ExitCode.FAILED),
    ],
)
def test_the_exit_code(outcomes: list[Outcome], code: ExitCode) -> None:
    assert exit_code(outcomes) is code
