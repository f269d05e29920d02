"""The doctor: each thing it looks at is a finding, also where looking fails, and has its exit code."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_variants.cli import app
from vllm_variants.doctor import wheels as doctor
from vllm_variants.errors import ExitCode
from vllm_variants.machine import gpus
from vllm_variants.model import matrix
from vllm_variants.model.findings import Finding, State
from vllm_variants.nix import findings as nix_findings
from vllm_variants.store import Store

MACHINES = Path(__file__).parents[1] / "machines"
ROWS = matrix.load()
Usage = namedtuple("Usage", "total used free")


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def a_machine_that_has_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = program(tmp_path / "uv", 'case $1 in --version) echo "uv 0.9.9 (1234)";; python) exit 1;; esac')
    python = f'echo \'["{ROWS.default.stack.python}.1", "CPython", false]\''
    program(tmp_path / "bin" / f"python{ROWS.default.stack.python}", python)
    monkeypatch.setenv("VLLM_VARIANTS_UV", str(uv))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(gpus.RECORDED, str(MACHINES / "h100.json"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(9, 0, 10**12))
    monkeypatch.setattr("vllm_variants.machine.memory.available", lambda: 10**11)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.35"))


def examined() -> dict[str, Finding]:
    store = Store.default()
    return {finding.about: finding for finding in doctor.examine(ROWS, ROWS.default, store)}


def ended(capsys: pytest.CaptureFixture[str]) -> int:
    """How `doctor --json` ends here."""
    with pytest.raises(SystemExit) as caught:
        app(["doctor", "--json"])
    json.loads(capsys.readouterr().out)
    return int(caught.value.code or 0)


def test_a_machine_that_has_all_has_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert [f for f in examined().values() if f.state is State.PROBLEM] == []
    assert ended(capsys) == 0


def no_disk(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setattr("shutil.disk_usage", lambda path: Usage(9, 0, 10**9))


def no_memory(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setattr("vllm_variants.machine.memory.available", lambda: 10**8)


def no_index(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "uv", 'case $1 in --version) echo "uv 0.9.9";; *) echo offline >&2; exit 2;; esac')


def no_python(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv("PATH", str(tmp_path))
    patch.setenv("PYENV_ROOT", str(tmp_path))


def no_uv(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv("VLLM_VARIANTS_UV", str(tmp_path / "nowhere"))


def old_system(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setattr("platform.libc_ver", lambda: ("glibc", "2.17"))


def no_variant(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv(gpus.RECORDED, str(MACHINES / "pascal.json"))


def no_recording(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch.setenv(gpus.RECORDED, str(tmp_path / "nowhere"))


def long_name(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def usage(path: Path) -> Usage:
        Path(path).stat()
        return Usage(9, 0, 10**12)

    patch.setattr("shutil.disk_usage", usage)
    patch.setenv("XDG_DATA_HOME", f"{tmp_path}/{'x' * 300}")


@pytest.mark.parametrize(
    ("lacks", "about", "code"),
    [
        (no_disk, "disk", ExitCode.RESOURCES),
        (no_memory, "memory", ExitCode.RESOURCES),
        (no_index, "index", ExitCode.RESOURCES),
        (no_python, "Python", ExitCode.MISSING),
        (no_uv, "uv", ExitCode.MISSING),
        (old_system, "C library", ExitCode.UNSUPPORTED),
        (no_variant, "GPU", ExitCode.UNSUPPORTED),
        (no_recording, "GPU", ExitCode.USAGE),
        (long_name, "disk", ExitCode.USAGE),
    ],
)
def test_what_is_lacking_is_a_finding_and_has_its_exit_code(
    lacks: Callable[[pytest.MonkeyPatch, Path], None],
    about: str,
    code: ExitCode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = list(examined())
    lacks(monkeypatch, tmp_path)

    findings = examined()

    assert findings[about].state is State.PROBLEM
    assert [*findings][: len(whole)] == whole  # and it went on
    assert ended(capsys) == code


@pytest.mark.parametrize(
    ("script", "says"),
    [("exit 1", "is not uv: `--version` ended with 1"), ("echo pip 25.1", "is not uv"), ("", "is not uv")],
)
def test_a_program_that_is_no_uv_is_a_problem(tmp_path: Path, script: str, says: str) -> None:
    program(tmp_path / "uv", script)

    finding = examined()["uv"]

    assert (finding.state, finding.hint) == (
        State.PROBLEM,
        "name a uv program in VLLM_VARIANTS_UV, or unset it",
    )
    assert says in finding.text


def test_the_doctor_says_whose_uv_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined()["uv"].text == f"uv 0.9.9 ({tmp_path / 'uv'}, which VLLM_VARIANTS_UV names)"
    monkeypatch.delenv("VLLM_VARIANTS_UV")
    assert examined()["uv"].text.endswith("(brought by vllm-variants)")


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "kill -9 $$",
        "echo nonsense",
        "case $1 in --version) echo 'nix (Nix) 2.26.3';; *) echo garbage;; esac",
        "case $1 in --version) echo 'nix (Nix) 2.26.3';; *) exit 1;; esac",
    ],
)
def test_a_broken_nix_is_a_note_and_not_the_end(
    tmp_path: Path, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin" / "nix", script)

    assert {finding.state for finding in nix_findings.examine()} <= {State.NOTE, State.OK}
    assert examined()["Nix"]
    assert ended(capsys) == 0


def test_a_nix_that_cannot_be_run_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "bin" / "nix").write_bytes(b"\x7fELF broken")
    (tmp_path / "bin" / "nix").chmod(0o755)

    (finding,) = nix_findings.examine()

    assert finding.state is State.NOTE
    assert "cannot be run" in finding.text
