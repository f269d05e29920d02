"""The `nix` program: what it says, as values, and its refusals, as one sentence."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class NixFailed(Exception):
    """Nix refused; the text is its last `error:`, in one line."""

    def __init__(self, stderr: str) -> None:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
        super().__init__(" ".join(plain.rpartition("error:")[2].split()))
        self.stderr = plain


@dataclass(frozen=True)
class Nix:
    """The `nix` program with settings of its own: no substituters, no import from derivation."""

    program: str
    environment: Mapping[str, str]

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """What `nix ARGUMENTS…` prints; raises `NixFailed`."""
        done = subprocess.run(
            [self.program, *map(str, arguments)],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NixFailed(done.stderr)
        return done.stdout

    def value(self, expression: str) -> Any:
        """The value of a Nix expression, by way of JSON. It may read any file."""
        return json.loads(self.run("eval", "--impure", "--json", "--expr", expression))

    def flake(self, reference: str, apply: str | None = None) -> Any:
        """The value of a flake's attribute."""
        return json.loads(
            self.run(
                "eval", "--no-update-lock-file", "--json", reference, *(["--apply", apply] if apply else [])
            )
        )

    def build(self, *arguments: str | Path) -> Path:
        """Build one thing without a link; its store path."""
        return Path(self.run("build", "--no-link", "--print-out-paths", *arguments).strip())
