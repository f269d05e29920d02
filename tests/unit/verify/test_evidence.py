"""Recorded runs as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_variants.errors import InputError
from vllm_variants.verify import evidence


def check(name: str, **changes: Any) -> dict[str, Any]:
    ok = {
        "status": "ok", "verdict": "passed", "error": 1e-3, "tolerance": 6e-3, "median_ms": 0.5,
        "first_ms": 1500.0, "image": "sm_90", "cases": [{}, {}],
    }  # fmt: skip
    return {"check": name} | ok | changes


def run(release: str, *checks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "release": release, "gpu": {"name": "NVIDIA H100"}, "driver": "580.1", "seed": 7,
        "finished": "2026-11-24T00:04:12Z", "summary": f"{len(checks)} ok", "checks": list(checks),
    } | more  # fmt: skip


def runs(*documents: dict[str, Any]) -> dict[str, Any]:
    return {"schema": "vllm-variants/evidence/1", "runs": list(documents)}


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def test_a_later_run_stands_for_an_earlier_one_and_releases_are_side_by_side(tmp_path: Path) -> None:
    bad = check("norm.rms_norm", status="failed", verdict="failed", reason="it crashed")
    write(
        tmp_path,
        "new.json",
        runs(run("0.13.0", bad, check("moe.sum")), run("0.13.0", check("norm.rms_norm"))),
    )
    write(tmp_path, "old.json", run("0.9.0", check("norm.rms_norm", cases=[{}], median_ms=None)))
    write(tmp_path, "compared.json", run("0.13.0", against="another"))
    assert evidence.outcomes(tmp_path) == (
        ("check", "0.13.0, NVIDIA H100", "0.9.0, NVIDIA H100"),
        [
            ("`moe.sum`", "ok · 2 cases: 0.001 of 0.006 · 0.5 ms (first 1.5 s) · sm_90", "not run"),
            (
                "`norm.rms_norm`",
                "ok · 2 cases: 0.001 of 0.006 · 0.5 ms (first 1.5 s) · sm_90",
                "ok · 1 case: 0.001 of 0.006 · first 1.5 s · sm_90",
            ),
        ],
    )


def test_what_is_not_ok_shows_its_reason_and_a_failure_stands_out(tmp_path: Path) -> None:
    refused = check("a.b", status="unsupported", reason="not on 9.0")
    missing = check("c.d", status="unsupported", verdict="failed", reason="no kernel image")
    bare = check("import.device", cases=[], error=None, median_ms=None, first_ms=None, image=None)
    write(tmp_path, "run.json", run("0.13.0", refused, missing, bare))
    _, rows = evidence.outcomes(tmp_path)
    assert [row[1] for row in rows] == ["unsupported: not on 9.0", "**unsupported**: no kernel image", "ok"]


def test_another_card_has_its_own_column(tmp_path: Path) -> None:
    write(tmp_path, "one.json", run("0.13.0", check("a.b")))
    write(tmp_path, "two.json", run("0.13.0", check("a.b", error=2e-3), gpu={"name": "NVIDIA L4"}))
    head, ((_, one, two),) = evidence.outcomes(tmp_path)
    assert head == ("check", "0.13.0, NVIDIA H100", "0.13.0, NVIDIA L4")
    assert one != two


def test_what_works_where_it_must_not_stands_out_too(tmp_path: Path) -> None:
    sentence = "it works, and vLLM 0.13.0 is not known to have it on sm90: catalogue.toml is wrong"
    write(tmp_path, "run.json", run("0.13.0", check("a.b", verdict="failed", sentence=sentence)))
    _, rows = evidence.outcomes(tmp_path)
    assert rows == [("`a.b`", f"**ok**: {sentence}")]


def test_every_run_is_listed_with_its_outcome(tmp_path: Path) -> None:
    write(
        tmp_path,
        "run.json",
        runs(run("0.11.2", check("c.d"), excerpt="one is kept"), run("0.13.0", check("a.b"))),
    )
    head, rows = evidence.runs(tmp_path)
    assert head[0] == "release and GPU"
    assert [(row[0], row[-1]) for row in rows] == [
        ("0.13.0, NVIDIA H100", "1 ok"),
        ("0.11.2, NVIDIA H100", "1 ok (one is kept)"),
    ]


def test_a_run_on_several_cards_says_how_many_and_shares_their_column(tmp_path: Path) -> None:
    card = {"name": "NVIDIA H100", "capability": "9.0", "memory": 80 << 30}
    both = run("0.13.0", check("all_reduce.custom", cards=2), gpus=[card, card])
    skipped = check("all_reduce.custom", status="skipped", verdict="skipped", reason="it needs two cards")
    write(tmp_path, "1.json", runs(run("0.13.0", check("a.b"), skipped), both))
    write(tmp_path, "2.json", run("0.13.0", check("a.b"), skipped))
    head, rows = evidence.outcomes(tmp_path)
    assert head == ("check", "0.13.0, NVIDIA H100")
    assert dict(rows)["`all_reduce.custom`"].startswith("ok · 2 cards · 2 cases: ")
    assert [row[0] for row in evidence.runs(tmp_path)[1]].count("0.13.0, 2 × NVIDIA H100") == 1


def test_native_runs_and_those_of_another_environment_have_columns_of_their_own(tmp_path: Path) -> None:
    eager = run("0.13.0", check("a.b"), native=True, environment="CUDA_MODULE_LOADING=EAGER")
    write(
        tmp_path,
        "run.json",
        runs(run("0.13.0", check("a.b")), run("0.13.0", check("a.b"), native=True), eager),
    )
    head, _ = evidence.outcomes(tmp_path)
    assert head[1:] == (
        "0.13.0, NVIDIA H100",
        "0.13.0, NVIDIA H100, native",
        "0.13.0, NVIDIA H100, native, CUDA_MODULE_LOADING=EAGER",
    )


def test_first_calls_of_a_native_result_stand_beside_those_that_the_driver_compiled(tmp_path: Path) -> None:
    def compared(name: str, **changes: Any) -> dict[str, Any]:
        same = {"likeness": "same", "sentence": "4 of 4 outputs identical", "first_ms": [6.2, 20300.0]}
        return {"check": name} | same | changes

    checks = [compared("a.b"), compared("c.d", first_ms=[1.5, None]), compared("e.f", likeness="untried")]
    native = run("0.13.0", *checks, against="PUBLISHED", native=True)
    write(tmp_path, "native.json", runs(native, run("0.11.2", compared("g.h"), against="PUBLISHED")))
    head, rows = evidence.first_calls(tmp_path)
    assert head[-2:] == ("first call, native", "compiled by the driver")
    assert rows == [
        ("0.13.0", "NVIDIA H100", "`a.b`", "4 of 4 outputs identical", "6.2 ms", "20.3 s"),
        ("0.13.0", "NVIDIA H100", "`c.d`", "4 of 4 outputs identical", "1.5 ms", ""),
    ]
    assert evidence.documents(tmp_path) == []


def test_no_folder_is_no_evidence(tmp_path: Path) -> None:
    assert evidence.outcomes(tmp_path / "none") == (("check",), [])


@pytest.mark.parametrize("content", ["{", "3", '{"release": "0.13.0"}', '{"runs": [{"gpu": {}}]}', "[]"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json holds no run of checks"):
        evidence.documents(tmp_path)
