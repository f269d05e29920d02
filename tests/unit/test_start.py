"""How the program starts: every way in, and signals before anything is begun."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vllm_variants import data

ROOT = data.checkout() or pytest.skip("pyproject.toml is in a checkout only", allow_module_level=True)
STARTS = ROOT / "python" / "vllm_variants" / "__main__.py"


def console_script() -> list[str]:
    """What the installed program does, by pyproject.toml's entry point."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["vllm-variants"]
    module, _, function = entry.partition(":")
    return [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]


WAYS_IN = [console_script(), [sys.executable, "-m", "vllm_variants"], [sys.executable, str(STARTS)]]


def start(command: list[str], folder: Path, typer: str) -> subprocess.CompletedProcess[str]:
    """Start with this text in the place of typer, which the command line imports."""
    (folder / "typer.py").write_text(typer)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "python")])}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("command", WAYS_IN, ids=["console script", "-m", "path"])
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_imports_ends_without_a_traceback(
    command: list[str], signal: str, tmp_path: Path
) -> None:
    signalled = f"import os, signal, time; os.kill(os.getpid(), signal.{signal}); time.sleep(30)"
    completed = start([*command, "list"], tmp_path, signalled)
    assert (completed.returncode, completed.stdout, completed.stderr) == (130, "", "")


@pytest.mark.parametrize("command", WAYS_IN, ids=["console script", "-m", "path"])
def test_an_installation_that_is_not_whole_says_so(command: list[str], tmp_path: Path) -> None:
    completed = start([*command, "list"], tmp_path, "raise ImportError('no typer here')")
    assert (completed.returncode, completed.stdout) == (4, "")
    assert completed.stderr.startswith("error: this installation is not whole: no typer here\nhint: ")
