"""A release that somebody wrote down wrongly or by half: one sentence each, from a checkout that has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_variants.errors import ExitCode

ROOT = Path(__file__).parents[2]
PARTS = ("python", "locks", "expectations", "advisories", "schemas")
HALF = """\
[release."0.99.0"]
builders = ["wheels"]
python = "3.12"
cuda = "13.0"
driver = "580"
torch = "2.14.0"

"""
"""A release with a table and nothing else."""
IMPOSSIBLE = """
[variant.sm99]
capability = "9.9"
architecture = "Nothing"
system = "x86_64-linux"
gpus = ["X9900"]
"""
"""An SM that no toolkit has."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    root = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def run(root: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: text for name, text in os.environ.items() if not name.startswith(("VLLM_VARIANTS_", "UV_"))}
    env |= {"PYTHONPATH": str(root / "python"), "PYTHONDONTWRITEBYTECODE": "1", "XDG_DATA_HOME": str(home)}
    env["VLLM_VARIANTS_MACHINE"] = str(ROOT / "tests" / "machines" / "h100.json")
    command = [sys.executable, "-m", "vllm_variants", *arguments]
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)


def with_half(text: str) -> str:
    return text.replace('[release."0.13.0"]', f'{HALF}[release."0.13.0"]')


def with_impossible(text: str) -> str:
    return text.replace('"sm121-arm64"]', '"sm121-arm64", "sm99"]') + IMPOSSIBLE


@pytest.mark.parametrize(
    ("edit", "command", "code", "error", "hint"),
    [
        (
            lambda text: text.replace("torch =", "troch =", 1), ("list",), ExitCode.USAGE,
            'variants.toml:19: [release."0.33.0"] troch is not known', "write torch",
        ),
        (
            lambda text: text.replace('cuda = "13.0"', "cuda = 13.0"), ("list",), ExitCode.USAGE,
            'variants.toml:16: [release."0.33.0"] cuda is 13.0', 'quote it: "…"',
        ),
        (
            lambda text: text.replace('"sm121-arm64"]', '"sm121-arm64", "sm99"]'), ("list",), ExitCode.USAGE,
            '[release."0.33.0"] own-variants names \'sm99\', which has no table',
            "add [variant.sm99], or leave it out",
        ),
        (
            with_impossible, ("build", "sm99", "--release", "0.33.0"), ExitCode.MISSING,
            "what release 0.33.0 holds for 9.9 (sm99) was never derived",
            "vllm-variants audit --derive WHEEL… > expectations/0.33.0.toml",
        ),
        (
            with_half, ("build", "sm90", "--release", "0.99.0"), ExitCode.MISSING,
            "release 0.99.0 has no lock for x86_64-linux (",
            "make it in a checkout: ./vllm-variants lock 0.99.0",
        ),
        (
            with_half, ("lock", "0.99.0"), ExitCode.MISSING,
            "release 0.99.0 has nothing to lock: ",
            "write vllm==0.99.0 into it, or leave it all to `vllm-variants release add`",
        ),
        (
            with_half, ("build", "sm103", "--release", "0.99.0"), ExitCode.USAGE,
            "release 0.99.0 has no variant sm103; release 0.33.0 has it",
            "ask for that release: vllm-variants build sm103 --release 0.33.0",
        ),
    ],
    ids=["mistyped", "no-string", "no-table", "impossible-sm", "no-lock", "nothing-to-lock", "other-release"],
)  # fmt: skip
def test_a_release_that_is_wrong_is_one_sentence(
    edit: Callable[[str], str], command: tuple[str, ...], code: ExitCode, error: str, hint: str,
    whole: Path, tmp_path: Path,
) -> None:  # fmt: skip
    text = (ROOT / "variants.toml").read_text()
    assert edit(text) != text
    (whole / "variants.toml").write_text(edit(text))
    completed = run(whole, tmp_path, *command)
    errors = [line for line in completed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert error in errors[0]
    assert completed.stderr.rstrip().endswith(f"hint: {hint}")
    assert (completed.returncode, completed.stdout) == (code, "")
    assert "Traceback" not in completed.stderr
    assert list(tmp_path.rglob("*result*")) == []
