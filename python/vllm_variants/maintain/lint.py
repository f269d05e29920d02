"""Lint the sources of a checkout: every rule that a machine can hold, in one command.

    ruff         errors, imports, idioms and formatting of Python (rules: pyproject.toml)
    mypy         types, strict, the GPU checks included
    shellcheck   the launcher and every shell script
    nixfmt       formatting of Nix, where a nixfmt is on PATH (no package index carries one)

Each is a program of its own with settings in the repository, so that an editor can run the same.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import UsageError
from vllm_variants.system import process


@dataclass(frozen=True)
class LintOutcome:
    """How one linter ended: `output` is what it printed, `skipped` why it could not run (else empty)."""

    name: str
    passed: bool
    output: str = ""
    skipped: str = ""

    @property
    def status(self) -> str:
        """`ok`, `failed` or `skipped`."""
        return "skipped" if self.skipped else "ok" if self.passed else "failed"


def run(root: Path, *, fix: bool = False) -> Iterator[LintOutcome]:
    """Run every linter over the checkout at `root`, one after the other; `fix` corrects what can be."""
    python = [sys.executable, "-m"]
    yield _lint("ruff check", [*python, "ruff", "check", "--quiet", *(["--fix"] if fix else []), "."], root)
    yield _lint(
        "ruff format", [*python, "ruff", "format", "--quiet", *([] if fix else ["--diff"]), "."], root
    )
    yield _lint("mypy", [*python, "mypy"], root)
    tracked = _tracked(root)
    shell = [path for path in tracked if _is_shell(root / path)]
    yield _with_program("shellcheck", ["--severity=style", "--", *shell], root)
    nix = [path for path in tracked if path.endswith(".nix")]
    yield _with_program("nixfmt", [*([] if fix else ["--check"]), *nix], root)


def _with_program(name: str, arguments: Sequence[str], root: Path) -> LintOutcome:
    beside = Path(sys.executable).with_name(name)
    program = str(beside) if beside.is_file() else shutil.which(name)
    if not program:
        return LintOutcome(name, True, skipped=f"there is no {name} on PATH")
    return _lint(name, [program, *arguments], root)


def _lint(name: str, command: Sequence[str], root: Path) -> LintOutcome:
    completed = process.capture(command, folder=root)
    return LintOutcome(name, completed.status == 0, completed.output.strip())


def _tracked(root: Path) -> list[str]:
    """The files that git tracks, or would, relative to `root`; raises `UsageError` where git has none."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = process.capture(command, folder=root)
    if listed.status:
        raise UsageError(f"git cannot list the files of {root}: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def _is_shell(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        first = file.readline()
    return first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash")
