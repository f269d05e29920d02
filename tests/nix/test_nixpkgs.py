"""`doctor --nixpkgs`, on the model: what it says of a pin that holds what is declared, and of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT
from real_nix import Nix

from vllm_variants.errors import Error
from vllm_variants.model import matrix
from vllm_variants.model.findings import State
from vllm_variants.model.variants import Release
from vllm_variants.nix import command as nix_command
from vllm_variants.nix import pinned as nixpkgs

MATRIX = matrix.load()
SM90, SM90_ARM = MATRIX.variants["sm90"], MATRIX.variants["sm90-arm64"]


@pytest.fixture
def asked(nix: Nix, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> nix_command.Nix:
    monkeypatch.setenv("NIX_CONFIG", nix.environment["NIX_CONFIG"])
    return nix_command.Nix(nix.program, f"path:{checkout}")


def evaluated(asked: nix_command.Nix, checkout: Path, release: Release = MATRIX.default) -> nixpkgs.Evaluated:
    return nixpkgs.evaluate(asked, checkout, release, SM90, flox=release == MATRIX.default)


def test_every_variant_of_every_release_is_asked_and_fits(asked: nix_command.Nix, checkout: Path) -> None:
    findings = list(nixpkgs.examine(asked, checkout, MATRIX))
    assert [finding.about for finding in findings] == [
        f"{release} {short}" for release in MATRIX.packaged for short in MATRIX.variants
    ]
    assert {finding.state for finding in findings} == {State.OK}, findings
    text = {finding.about: finding.text for finding in findings}
    assert "vllm 0.13.0, torch from wheel: /nix/store/" in text["0.13.0 sm90"]
    assert text["0.13.0 sm90"].endswith("-sm90-0.13.0.drv, the same by way of Flox")
    assert "torch from source" in text["0.13.0 sm90-arm64"]
    assert text["0.11.2 sm90"].endswith("-sm90-0.11.2.drv")


def test_versions_are_those_that_nixpkgs_packages(asked: nix_command.Nix, checkout: Path) -> None:
    found = evaluated(asked, checkout)
    expected = {"vllm": "0.13.0", "torch": "2.9.1", "cuda": "12.9", "gcc": "14.3.0", "cudnn": "9.10.2.21"}
    assert found.versions == expected | {"python": "3.12.12"}
    assert found.flox_drv == found.drv
    assert list(nixpkgs.differences(found, MATRIX.default)) == []


@pytest.mark.parametrize(
    ("name", "version"), [("vllm", "0.11.2"), ("torch", "2.10.0"), ("cuda", "13.0"), ("python", "3.13.1")]
)
def test_another_version_than_declared_is_said(
    asked: nix_command.Nix, checkout: Path, name: str, version: str
) -> None:
    found = evaluated(asked, checkout)
    other = replace(found, versions=found.versions | {name: version})
    (said,) = nixpkgs.differences(other, MATRIX.default)
    assert said.startswith(f"nixpkgs packages {name} {version}, ")


def test_another_derivation_by_way_of_flox_is_said(asked: nix_command.Nix, checkout: Path) -> None:
    other = replace(evaluated(asked, checkout), flox_drv="/nix/store/other.drv")
    (said,) = nixpkgs.differences(other, MATRIX.default)
    assert "another derivation" in said


def test_a_pin_with_another_vllm_is_a_problem_in_nixs_own_sentence(
    asked: nix_command.Nix, checkout: Path
) -> None:
    older = replace(asked, overrides=(("nixpkgs", f"path:{checkout}/tests/nix/nixpkgs?dir=releases/0.11.2"),))
    with pytest.raises(
        Error,
        match=r"^sm90 does not evaluate: this nixpkgs packages vLLM 0\.11\.2, and release 0\.13\.0 was asked",
    ) as caught:
        nixpkgs.evaluate(older, checkout, MATRIX.default, SM90, flox=False)
    assert "nix eval --show-trace" in str(caught.value)


def test_the_command_asks_the_checkout_that_it_runs_from(nix: Nix, checkout: Path) -> None:
    environment = {
        **nix.environment,
        "PATH": f"{Path(nix.program).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout / "python"),
    }
    command = [sys.executable, "-m", "vllm_variants", "doctor", "--nixpkgs", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert len(findings) == len(MATRIX.packaged) * len(MATRIX.variants)
    assert {finding["state"] for finding in findings} == {"ok"}
