"""The house rules that a machine can check: formatting, lint, types, and what no commit may name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_variants import data

ROOT = data.checkout() or pytest.skip("the sources are in a checkout only", allow_module_level=True)

# Hosts of package registries, and folders that only some machine has.
UNWANTED = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|(?<![\w./$}])/(?:root|work|home)/\w"
)


def run(*module: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", *module], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this checkout has no git to list its files")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_lint() -> None:
    run("ruff", "check", ".")


def test_format() -> None:
    run("ruff", "format", "--check", ".")


def test_types() -> None:
    run("mypy")


def test_nothing_names_a_registry_or_this_machine() -> None:
    named = []
    for path in tracked():
        if path == Path(__file__) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        named += [f"{path.relative_to(ROOT)}: {match[0]}" for match in UNWANTED.finditer(text)]
    assert named == []


def test_readme_commands_exist() -> None:
    """The two commands of the README start the launcher, which is there and can be run."""
    readme = (ROOT / "README.md").read_text()
    assert "./vllm-variants build sm90" in readme
    assert "./vllm-variants test" in readme
    assert (ROOT / "vllm-variants").stat().st_mode & 0o111
