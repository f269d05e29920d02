"""The package as it is installed: a wheel that needs no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.errors import ExitCode
from vllm_variants.model import matrix
from vllm_variants.system import uv

ROOT = data.checkout() or pytest.skip("a package is made in a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel, and nothing of the checkout."""
    made = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)]
    told = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    (wheel,) = made.glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    install = [uv.program(), "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, "--python", sys.executable, str(wheel)], check=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "vllm_variants", *arguments]
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)


def test_it_brings_the_matrix(installed: Path) -> None:
    told = run(installed, "list", "--json")
    assert [v["short"] for v in json.loads(told.stdout)["variants"]] == list(matrix.load().variants)


def test_it_brings_locks_and_expectations(installed: Path) -> None:
    code = """
from vllm_variants import data
from vllm_variants.audit import contents as expectations
from vllm_variants.builders.wheels import locks
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS
rows = matrix.load()
pairs = [(release, system) for release in rows.releases.values() for system in SYSTEMS]
digests = [locks.find(*pair).digest[:7] for pair in pairs]
print(data.checkout(), digests, all(expectations.load(release, "x86_64-linux") for release in rows.releases))
"""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == f"None {['sha256:'] * 6} True"


def test_it_brings_the_schemas_and_its_types(installed: Path) -> None:
    assert (installed / "vllm_variants" / "py.typed").is_file()
    brought = (installed / "vllm_variants" / "data" / "schemas").iterdir()
    assert {path.name for path in brought} == {path.name for path in (ROOT / "schemas").iterdir()}


def test_it_hides_the_commands_of_a_checkout(installed: Path) -> None:
    listed = run(installed, "--help").stdout
    assert " build " in listed
    assert not any(line.split()[:1] in (["lock"], ["docs"], ["test"]) for line in listed.splitlines())


@pytest.mark.parametrize("words", [["docs"], ["lock", "0.13.0"], ["pin", "--help"], ["test", "-k", "x"]])
def test_a_command_of_a_checkout_says_that_it_needs_one(installed: Path, words: list[str]) -> None:
    told = run(installed, *words)
    assert told.returncode == ExitCode.USAGE
    assert f"`{words[0]}` works on a checkout" in told.stderr
    assert f"run ./vllm-variants {words[0]} in it" in told.stderr


def test_it_is_named_by_its_version(installed: Path) -> None:
    (info,) = installed.glob("vllm_variants-*.dist-info")
    assert run(installed, "--version").stdout.split() == [
        "vllm-variants",
        info.name.split("-")[1].removesuffix(".dist"),
    ]
    assert "License-Expression: MIT" in (info / "METADATA").read_text()
