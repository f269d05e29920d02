"""What a person reads after a mistake: a file for each under tests/snapshots/errors, held word for word.

A file's first line is the command; the rest is its exit code and what it printed. For a new mistake
write that line, and after a change of words run:

    ./vllm-variants test tests/unit/test_mistakes.py --update-snapshots

then read the difference before it is committed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "audit"))
import imaging

from unit.export.conftest import SITE, write_result
from vllm_variants.errors import ExitCode

TESTS = Path(__file__).parents[1]
SNAPSHOTS = sorted((TESTS / "snapshots" / "errors").glob("*.txt"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The current folder of every command: recorded machines, a text file, links that lead nowhere."""
    (tmp_path / "machines").symlink_to(TESTS / "machines")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "bin").mkdir()
    imaging.mistakes(tmp_path / "audits")
    return tmp_path


def write_results(folder: Path) -> None:
    """What exports are made of: a result, one of another platform, and one that lost its packages."""
    write_result(folder / "result")
    write_result(folder / "foreign", system="riscv64-linux")
    write_result(folder / "damaged")
    shutil.rmtree(folder / "damaged" / SITE)


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell: variables, then `vllm-variants` with its arguments."""
    words = shlex.split(line)
    start = words.index("vllm-variants")
    ours = ("VLLM_VARIANTS_", "UV_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {name: str(folder / name.lower()) for name in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
    env |= dict(word.split("=", 1) for word in words[:start])
    command = [sys.executable, "-m", "vllm_variants", *words[start + 1 :]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def snapshot(line: str, completed: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The text of a snapshot: paths of this machine become <folder> and <checkout>."""
    parts = [f"$ {line}", f"exit code: {completed.returncode}"]
    for name in ("stdout", "stderr"):
        if text := getattr(completed, name).rstrip():
            parts += [f"--- {name}", text]
    text = "\n".join(parts) + "\n"
    return re.sub(re.escape(str(TESTS.parent)), "<checkout>", text.replace(str(folder), "<folder>"))


@pytest.mark.parametrize("file", SNAPSHOTS, ids=lambda file: file.stem)
def test_a_mistake_is_answered_as_its_snapshot_says(
    file: Path, folder: Path, request: pytest.FixtureRequest
) -> None:
    line = file.read_text().splitlines()[0].removeprefix("$ ")
    if " export --result " in line:
        write_results(folder)
    before = sorted(folder.iterdir())
    completed = run(line, folder)
    actual = snapshot(line, completed, folder)
    if request.config.getoption("--update-snapshots"):
        file.write_text(actual)

    assert actual == file.read_text()
    assert completed.returncode in set(ExitCode) - {ExitCode.OK}
    assert completed.stdout == ""
    assert re.search(r"^error: \S", completed.stderr, re.MULTILINE)
    assert "Traceback" not in completed.stderr
    assert (folder / "file").read_text() == "mine"
    assert sorted(folder.iterdir()) == before


def test_there_is_a_snapshot_for_every_kind_of_failure() -> None:
    """A lost folder of snapshots would pass silently."""
    texts = "".join(file.read_text() for file in SNAPSHOTS)
    codes = {int(code) for code in re.findall(r"^exit code: (\d+)$", texts, re.MULTILINE)}
    assert {ExitCode.USAGE, ExitCode.UNSUPPORTED, ExitCode.MISSING} <= codes
    assert len(SNAPSHOTS) > 80
