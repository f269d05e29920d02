"""What counts as a pass: the outcome that this SM must show, and nothing else."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.verify import judgement, reports, running
from vllm_variants.verify.catalogue import Check, Support
from vllm_variants.verify.judgement import JudgedCheck, Judgement

HOPPER = Check("machete.x", "weights", "…", 1, 1, Support(frozenset({"sm90"}), frozenset({"sm100"})))
STATUSES = ("ok", "failed", "unsupported", "skipped")


def judged(status: str, sm: str, reason: str = "because") -> JudgedCheck:
    outcome = {"check": HOPPER.name, "status": status, "reason": reason, "seconds": 1.5}
    return judgement.judge(HOPPER, outcome, release="0.13.0", sm=sm)


@pytest.mark.parametrize(
    ("status", "sm", "verdict"),
    [
        ("ok", "sm90", Judgement.PASSED),
        ("unsupported", "sm90", Judgement.FAILED),
        ("failed", "sm90", Judgement.FAILED),
        ("skipped", "sm90", Judgement.SKIPPED),
        ("ok", "sm80", Judgement.FAILED),
        ("unsupported", "sm80", Judgement.PASSED),
        ("failed", "sm80", Judgement.FAILED),
        ("skipped", "sm80", Judgement.SKIPPED),
        ("ok", "sm100", Judgement.OPEN),
        ("failed", "sm100", Judgement.OPEN),
        ("skipped", "sm100", Judgement.SKIPPED),
    ],
)
def test_verdicts(status: str, sm: str, verdict: Judgement) -> None:
    assert judged(status, sm).judgement is verdict


def test_unsupported_where_it_must_run_says_so() -> None:
    assert judged("unsupported", "sm90", "no kernel image is available").sentence == (
        "sm90 must run this with vLLM 0.13.0, and it does not: no kernel image is available"
    )


def test_running_where_it_should_not_names_the_data() -> None:
    assert "catalogue.toml is wrong" in judged("ok", "sm80").sentence


@given(st.lists(st.tuples(st.sampled_from(STATUSES), st.sampled_from(("sm80", "sm90", "sm100")))))
def test_a_run_is_good_only_when_nothing_failed_and_something_was_ok(runs: list[tuple[str, str]]) -> None:
    all_judged = [judged(status, sm) for status, sm in runs]
    summary = judgement.summarise(all_judged)
    assert summary.passed + summary.failed + summary.skipped + summary.open == len(runs)
    failed = any(each.judgement is Judgement.FAILED for each in all_judged)
    proven = any(run == ("ok", "sm90") for run in runs)
    assert summary.good == (proven and not failed)


def test_a_run_of_skips_and_rightly_unsupported_proves_nothing() -> None:
    summary = judgement.summarise([judged("skipped", "sm90"), judged("unsupported", "sm80")])
    assert not summary.good
    assert summary.sentence == "0 ok, 1 rightly unsupported, 1 skipped, nothing was proven"


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("CUDA error: no kernel image is available for execution on the device", "vllm-variants audit"),
        ("CUDA out of memory", "free it"),
        ("the provided PTX was compiled with an unsupported toolchain.", "driver is too old"),
        ("it needs code …, which --native forbids (CUDA_DISABLE_PTX_JIT=1)", "build it with --native"),
        ("error 0.5", "--only"),
    ],
)
def test_advice_follows_the_cause(reason: str, says: str) -> None:
    assert says in (judgement.advice([judged("failed", "sm90", reason)], "9.0") or "")
    assert judgement.advice([judged("ok", "sm90")], "9.0") is None


@pytest.mark.parametrize(
    "reason",
    [
        "its imports fail: ImportError: libcuda.so.1: cannot open shared object file",
        "torch finds no CUDA device: torch.cuda.is_available() is False",
        "RuntimeError: Found no NVIDIA driver on your system.",
    ],
)
def test_a_machine_without_libcuda_is_not_told_to_build_again(reason: str) -> None:
    hint = judgement.advice([failed_import(reason)], "9.0") or ""
    assert "libcuda.so.1, which comes with the host's NVIDIA driver" in hint
    assert "build the variant again" not in hint


def test_a_slow_disk_is_not_told_to_build_again() -> None:
    hint = judgement.advice(
        [failed_import("while it was loading, it did not answer within 240 seconds")], "9.0"
    )
    assert hint == "reading the libraries took more than 240 s: run it again when the disk is less busy"


def test_a_broken_installation_is_told_to_build_again() -> None:
    reason = "its imports fail: ImportError: undefined symbol: x"
    hint = judgement.advice([failed_import(reason)], "9.0") or ""
    assert "build the variant again" in hint


def test_checks_that_had_no_time_are_told_to_get_more() -> None:
    hint = judgement.advice([judged("ok", "sm90"), judged("skipped", "sm90", running.TIME_OVER)], "9.0")
    assert hint == "the time was over before 1 of 2 checks: raise --time, or leave it out"
    assert judgement.advice([judged("skipped", "sm90", "it needs two GPUs")], "9.0") is None


def failed_import(reason: str) -> judgement.JudgedCheck:
    versions = Check("import.versions", "imports", "…", 1, 1, Support(None, frozenset()))
    outcome = {"check": versions.name, "status": "failed", "reason": reason}
    return judgement.judge(versions, outcome, release="0.13.0", sm="sm90")


def test_advice_for_another_gpu_names_detect() -> None:
    device = Check("import.device", "imports", "…", 1, 1, Support(None, frozenset()))
    reason = "this card is of compute capability 9.0, and the result is built for 8.6"
    wrong = judgement.judge(
        device, {"check": device.name, "status": "failed", "reason": reason}, release="0.13.0", sm="sm86"
    )
    assert "vllm-variants detect" in (judgement.advice([wrong], "8.6") or "")


def test_junit_has_a_case_a_check_with_failures_and_skips(tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    three = [judged("ok", "sm90"), judged("failed", "sm90", "bad\x00byte"), judged("skipped", "sm90")]
    reports.write_junit(three, "sm90", file)
    suite = ElementTree.parse(file).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    cases = suite.findall("testcase")
    assert cases[0].find("failure") is None
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "bad�byte"
    assert cases[2].find("skipped") is not None


def test_a_line_shows_error_time_and_image() -> None:
    outcome = {
        "check": "machete.x", "status": "ok", "error": 1.23e-4, "tolerance": 1e-3,
        "first_ms": 14000.0, "median_ms": 0.0512, "image": "sm_90", "seconds": 15.0,
    }  # fmt: skip
    text = reports.line(judgement.judge(HOPPER, outcome, release="0.13.0", sm="sm90"))
    assert "0.00012 of 0.001" in text
    assert "0.0512 ms (first 14.0 s)" in text
    assert "sm_90" in text


@pytest.mark.parametrize(
    ("facts", "times"),
    [
        ({"health_s": 52.31, "first_token_s": 0.0213}, "/health after 52.3 s, first token 21.3 ms"),
        ({"health_s": 106.0}, "/health after 1 min 46 s"),
    ],
)
def test_a_server_shows_its_times(facts: dict[str, float], times: str) -> None:
    outcome = {"error": 0.0, "tolerance": 0.0, "first_ms": 90.0, "facts": facts}
    assert reports.figures(outcome) == ("0 of 0", times, "")
