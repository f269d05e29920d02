"""Audits for continuous integration: SARIF, JUnit, and the exit codes of --fail-on and --strict."""

from __future__ import annotations

import json
import os
import venv
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from making import cubin, library, ptx, section
from typer.testing import CliRunner

from vllm_variants import audit_path
from vllm_variants.audit import ci
from vllm_variants.cli import application

SARIF_LEVELS = {"none", "note", "warning", "error"}
"""Of SARIF 2.1.0, 3.27.10. Logs of this module were also held to the standard's JSON Schema, by hand."""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a GPU, and a cache that nobody else has."""
    monkeypatch.setenv("VLLM_VARIANTS_MACHINE", str(Path(__file__).parents[2] / "machines" / "no-gpu.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A tree that waits on 9.0, has foreign bytes, a broken file, and a name that needs quoting."""
    tree = tmp_path / "mixed tree"
    (tree / "vllm").mkdir(parents=True)
    library(tree / "vllm" / "_moe_C.so", section([cubin("sm_90")], [ptx("compute_80", 900)]))
    library(tree / "a b#ü.so", section([cubin("sm_90"), cubin("sm_80", 90_000)]))
    (tree / os.fsdecode(b"cut\xff.so")).write_bytes((tree / "vllm" / "_moe_C.so").read_bytes()[:300])
    return tree


def one(root: Path, code: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    library(root / "made.so", code)
    return root


def run(*words: object) -> int:
    """The exit code of `audit`."""
    outcome = CliRunner().invoke(application("audit"), ["audit", *map(str, words)])
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code


# ── SARIF ──


def test_sarif_has_a_result_for_each_finding_at_its_file(mixed: Path) -> None:
    report = audit_path(mixed, "sm90")
    log = json.loads(json.dumps(ci.sarif([report])))
    (part,) = log["runs"]
    rules = [rule["id"] for rule in part["tool"]["driver"]["rules"]]
    assert log["version"] == "2.1.0" and len(set(rules)) == len(rules)
    assert len(part["results"]) == len(report.findings) == 3
    places = {}
    for result in part["results"]:
        assert result["ruleId"] in rules and result["level"] in SARIF_LEVELS and result["message"]["text"]
        (place,) = result["locations"]
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert urlsplit(uri)[2] == uri and uri.isascii() and " " not in uri, "a path alone, quoted"
        places[result["ruleId"]] = os.fsencode(unquote(uri, errors="surrogateescape"))
    assert places == {
        "missing": os.fsencode(mixed) + b"/cut\xff.so",
        "jit": os.fsencode(mixed / "vllm/_moe_C.so"),
        "foreign": os.fsencode(mixed / "a b#ü.so"),
    }


def test_sarif_of_one_library_names_it_once(tmp_path: Path) -> None:
    file = one(tmp_path, section([ptx("compute_80")])) / "made.so"
    (result,) = ci.sarif([audit_path(file, "sm90")])["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == str(file)


def test_sarif_of_a_driver_is_about_all_that_was_audited(tmp_path: Path) -> None:
    library(tmp_path / "libcublas.so.13", section([cubin("sm_90")]))
    (result,) = ci.sarif([audit_path(tmp_path, "sm90", driver="560.35")])["runs"][0]["results"]
    assert result["ruleId"] == "driver"
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == str(tmp_path)


def test_a_feature_of_which_nothing_runs_is_a_result_too(tmp_path: Path) -> None:
    (result,) = ci.sarif([audit_path(one(tmp_path / "x", section([cubin("sm_100")])), "sm90")])["runs"][0][
        "results"
    ]
    assert result["level"] == "error" and "nothing in it runs on sm90" in result["message"]["text"]


# ── JUnit ──


def test_junit_has_a_case_for_each_feature_and_each_file_that_is_broken(mixed: Path, tmp_path: Path) -> None:
    gone = one(tmp_path / "gone", section([cubin("sm_100")]))
    reports = [audit_path(mixed, "sm90"), audit_path(gone, "sm90")]
    suite = ElementTree.fromstring(ci.junit_document(reports).encode()).find("testsuite")
    assert suite is not None
    cases = {case.attrib["name"]: [child.tag for child in case] for case in suite}
    assert cases["mixtures of experts"] == ["system-out"] and cases["made"] == ["failure", "system-out"]
    assert cases["cut�.so"] == ["error"]
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("1", "1")
    assert len(cases) == sum(len(report.features) for report in reports) + 1


# ── exit codes ──

FOREIGN = section([cubin("sm_90"), cubin("sm_80", 90_000)])
JIT = section([ptx("compute_80", 900)])
RUNS = section([cubin("sm_90")])
NOTHING_RUNS = section([cubin("sm_100")])


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (RUNS, "", 0),
        (RUNS, "--fail-on missing --fail-on jit --fail-on foreign --fail-on driver --strict", 0),
        (JIT, "", 0),
        (JIT, "--fail-on missing --fail-on foreign --fail-on driver", 0),
        (JIT, "--fail-on jit", 5),
        (JIT, "--strict", 5),
        (JIT, "--driver 560.35", 5),  # 575 wrote it
        (JIT, "--driver 580.82 --fail-on driver", 0),
        (JIT, "--driver 560.35 --fail-on driver", 5),
        (FOREIGN, "--fail-on missing --fail-on jit --fail-on driver", 0),
        (FOREIGN, "--fail-on foreign", 5),
        (FOREIGN, "--strict", 5),
        (NOTHING_RUNS, "", 5),
        (b"\x07" * 400, "", 5),  # a section that is no fat binary
    ],
)
def test_what_ends_in_5(tmp_path: Path, code: bytes, options: str, expected: int) -> None:
    assert run(one(tmp_path / "x", code), "--sm", "sm90", *options.split()) == expected


@pytest.mark.parametrize(("options", "expected"), [("", 0), ("--fail-on missing", 5), ("--strict", 5)])
def test_a_path_without_device_code(tmp_path: Path, options: str, expected: int) -> None:
    """Nothing is there that could fail to run; who wants code says so."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "module.py").write_text("pass")
    assert run(tmp_path / "empty", "--sm", "sm90", *options.split()) == expected


def test_code_that_is_only_listed_ends_in_0_unless_it_cannot_be_read(tmp_path: Path) -> None:
    tree = one(tmp_path / "x", NOTHING_RUNS)
    assert run(tree) == 0
    (tree / "cut.so").write_bytes((tree / "made.so").read_bytes()[:300])
    assert run(tree) == 5


def test_the_worst_path_decides_and_reports_are_written_all_the_same(tmp_path: Path) -> None:
    good, bad = one(tmp_path / "good", RUNS), one(tmp_path / "bad", NOTHING_RUNS)
    sarif, junit = tmp_path / "out" / "a.sarif", tmp_path / "out" / "a.xml"
    assert run(good, bad, "--sm", "sm90", "--sarif", sarif, "--junit", junit) == 5
    assert [r["ruleId"] for r in json.loads(sarif.read_text())["runs"][0]["results"]] == ["missing"]
    assert ElementTree.parse(junit).getroot().find("testsuite").attrib["tests"] == "2"  # type: ignore[union-attr]


def test_the_cards_that_are_here_are_judged_for_with_their_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = one(tmp_path / "x", section([cubin("sm_90")], [ptx("compute_80")]))
    machine = json.loads((Path(__file__).parents[2] / "machines" / "h100.json").read_text())
    facts = machine.get("machine", machine)
    for driver, expected in (("570.86.15", 5), ("575.51.03", 0)):
        facts["driver"] = driver
        (tmp_path / "machine.json").write_text(json.dumps(facts))
        monkeypatch.setenv("VLLM_VARIANTS_MACHINE", str(tmp_path / "machine.json"))
        assert run(tree) == expected
        assert run(tree, "--sm", "sm100") == 0, "of another card's driver nothing is known"


def test_what_an_interpreter_imports_is_held_to_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path, and by its name on PATH as a shell finds it."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/python3*/site-packages")
    (site / "vllm").mkdir()
    library(site / "vllm" / "_C.abi3.so", RUNS)
    program = tmp_path / "env" / "bin" / "python"
    assert run("--python", program, "--sm", "sm90") == 0
    (site / "vllm-0.13.0.dist-info").mkdir()
    assert run("--python", program, "--sm", "sm90") == 5, "that release has more libraries"
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    assert run("--python", "python", "--sm", "sm90", "--release", "0.13.0") == 5
