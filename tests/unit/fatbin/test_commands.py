"""`vllm-variants audit` and `slim` as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from making import cubin, library, ptx, section

from vllm_variants.errors import ExitCode

CODE = section(
    [cubin("sm_80", 90_000), cubin("sm_89", 9000), cubin("sm_90", 9000)],
    [cubin("sm_80", 90_000), ptx("compute_80", 5000)],
)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_variants", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    packages = tmp_path / "tree" / "lib" / "python3.12" / "site-packages"
    (packages / "vllm").mkdir(parents=True)
    (packages / "vllm-0.13.0.dist-info").mkdir()
    library(packages / "vllm" / "_C.abi3.so", CODE)
    return tmp_path / "tree"


def test_audit_prints_a_table_and_a_verdict(tree: Path) -> None:
    told = run("audit", "--sm", "sm90", tree / "lib" / "python3.12" / "site-packages" / "vllm")

    assert told.returncode == 0
    assert "_C.abi3.so" in told.stdout
    assert "verdict for sm90: foreign" in told.stdout
    assert "PTX only in 1 of 2" in told.stdout
    assert "of PTX, driver ≥ 575" in told.stdout


def test_audit_prints_json_and_nothing_else(tree: Path) -> None:
    told = run("audit", "--sm", "9.0", "--json", tree / "lib" / "python3.12" / "site-packages" / "vllm")

    facts = json.loads(told.stdout)
    assert facts["capability"] == "9.0"
    assert facts["verdict"] == "foreign"
    assert facts["libraries"][0]["fits"] == {"native": 1, "jit": 1}


def test_strict_fails_unless_everything_runs_as_it_is(tree: Path) -> None:
    assert (
        run(
            "audit", "--sm", "sm90", "--strict", tree / "lib" / "python3.12" / "site-packages" / "vllm"
        ).returncode
        == 5
    )
    assert run("audit", "--strict", tree).returncode == 0  # nothing was judged


def test_a_gpus_name_is_a_device(tree: Path) -> None:
    path = next(tree.rglob("*.so"))

    told = run("audit", "--why", "L40S", path)

    assert told.returncode == 0
    assert "on sm89 (compute capability 8.9)" in told.stdout
    assert "runs: machine code for exactly 8.9" in told.stdout
    assert "could run, but sm_89 is better" in told.stdout


def test_missing_code_of_a_release_fails_with_the_audits_exit_code(tree: Path) -> None:
    """The tree says it is vLLM 0.13.0, whose wheel has more than this."""
    told = run("audit", "--sm", "sm90", tree)

    assert told.returncode == ExitCode.AUDIT
    assert "held to vLLM 0.13.0: missing" in told.stdout
    assert "_vllm_fa3_C.abi3.so: is not there" in told.stdout


def test_a_result_is_judged_for_its_own_sm(tree: Path) -> None:
    manifest = tree / "share" / "vllm-variants" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    facts = {
        "schema": 1,
        "variant": "vllm-python312-cuda12_9-sm89",
        "short": "sm89",
        "capability": "8.9",
        "system": "x86_64-linux",
        "release": "9.9.9",
        "builder": "wheels",
    }
    manifest.write_text(json.dumps(facts))

    told = run("audit", "--json", tree)

    assert json.loads(told.stdout)["capability"] == "8.9"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["audit", "nowhere"], ExitCode.MISSING, "nowhere does not exist"),
        (["audit", "--sm", "sm9x", "."], ExitCode.USAGE, "sm9x"),
        (["slim", "nowhere", "--sm", "90", "-o", "x"], ExitCode.MISSING, "nowhere does not exist"),
        (["slim", ".", "--sm", "90"], ExitCode.USAGE, "say where the slimmed files go"),
        (["slim", ".", "--sm", "90", "-o", "x", "--in-place"], ExitCode.USAGE, "say where"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: list[str], code: ExitCode, says: str) -> None:
    told = run(*words)

    assert told.returncode == code
    assert says in told.stderr
    assert "Traceback" not in told.stderr


def test_closure_without_nix_is_one_sentence(tree: Path) -> None:
    environment = {**os.environ, "PATH": "/nowhere"}
    command = [sys.executable, "-m", "vllm_variants", "audit", "--closure", str(tree)]

    told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert told.returncode == ExitCode.MISSING
    assert "nix-store, which is not installed" in told.stderr


def test_closure_audits_every_path_that_nix_names(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    library(other / "libcublas.so", section([cubin("sm_90", 5000)]))
    fake = tmp_path / "bin" / "nix-store"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf '%s\\n' {tree} {other}\n")
    fake.chmod(0o755)
    command = [sys.executable, "-m", "vllm_variants", "audit", "--closure", "--json", str(tree)]

    told = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{fake.parent}:/bin"},
    )

    libraries = [each["path"] for each in json.loads(told.stdout)["libraries"]]
    assert [Path(path).name for path in libraries] == ["_C.abi3.so", "libcublas.so"]


def test_slim_writes_a_copy_and_tells_what_it_saved(tree: Path, tmp_path: Path) -> None:
    told = run("slim", tree, "--sm", "sm90", "-o", tmp_path / "slimmed", "-j", 1)

    assert told.returncode == 0
    assert "for sm90" in told.stderr
    assert next((tmp_path / "slimmed").rglob("*.so")).stat().st_size < 120_000
    assert next(tree.rglob("*.so")).stat().st_size > 190_000
    assert (tmp_path / "slimmed" / "lib" / "python3.12" / "site-packages" / "vllm-0.13.0.dist-info").is_dir()


def test_slim_one_library_for_two_devices_as_json(tree: Path, tmp_path: Path) -> None:
    path = next(tree.rglob("*.so"))

    told = run("slim", path, "--sm", "sm89", "--sm", "H100", "-o", tmp_path / "new.so", "--json")

    facts = json.loads(told.stdout)
    assert facts["devices"] == ["8.9", "9.0"]
    assert facts["after"] == (tmp_path / "new.so").stat().st_size


def test_slim_in_place_follows_a_link_to_one_library(tree: Path, tmp_path: Path) -> None:
    path = next(tree.rglob("*.so"))
    link = tmp_path / "link.so"
    link.symlink_to(path)

    assert run("slim", link, "--sm", "90", "--in-place").returncode == 0

    assert link.is_symlink()
    assert path.stat().st_size < 120_000


def test_slim_refuses_what_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")

    told = run("slim", tmp_path / "text", "--sm", "90", "--in-place")

    assert told.returncode == ExitCode.USAGE
    assert "cannot be slimmed: no ELF64 library" in told.stderr
