"""The verdict of a report, and what a driver must be."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import Made, cubin, library, ptx, section
from sample import HOPPER

from vllm_variants.audit import Verdict, audit_tree
from vllm_variants.audit.report import AuditReport


def found(report: AuditReport) -> list[tuple[str, str]]:
    return [(str(finding.verdict), finding.what) for finding in report.findings]


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (section([cubin("sm_90", 9000)]), Verdict.PASS),
        (section([cubin("sm_90")], [ptx("compute_80", 900)]), Verdict.JIT),
        (section([cubin("sm_90"), cubin("sm_80", 90_000)], [ptx("compute_80")]), Verdict.FOREIGN),
        (section([cubin("sm_90"), cubin("sm_80", 300)]), Verdict.PASS),  # less than a hole: nothing to gain
        (b"\x07" * 400, Verdict.MISSING),  # unreadable
    ],
)
def test_the_verdict_is_the_worst_finding(tmp_path: Path, code: bytes, verdict: Verdict) -> None:
    library(tmp_path / "made.so", code)

    report = audit_tree(tmp_path, HOPPER)

    assert report.verdict is verdict
    assert report.passed == (verdict is not Verdict.MISSING)


def test_the_newest_ptx_decides_which_driver_compiles_all(tmp_path: Path) -> None:
    old = Made("compute_80", b".version 8.5", header_size=80, version=(8, 5))
    library(tmp_path / "a.so", section([ptx("compute_80")], [cubin("sm_90"), ptx("compute_90")]))
    library(tmp_path / "b.so", section([old]))
    report = audit_tree(tmp_path, HOPPER)
    assert report.as_dict()["totals"]["jit_driver"] == 575
    assert {lib.path: [each.version for each in lib.jit] for lib in report.libraries} == {
        "a.so": [(8, 8)], "b.so": [(8, 5)],
    }  # fmt: skip
    assert [what.rpartition("must be ")[2] for _, what in found(report)] == [
        "575 or newer for that", "555 or newer for that",
    ]  # fmt: skip
    assert audit_tree(tmp_path, None).as_dict()["totals"]["jit_driver"] is None


def test_without_a_device_there_is_no_verdict(tree: Path) -> None:
    report = audit_tree(tree, None)

    assert report.verdict is None
    assert report.passed
    assert report.libraries[0].device_bytes > 300_000
