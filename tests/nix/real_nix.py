"""The `nix` program: what it says, as values, and its refusals, as one sentence."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paths import ROOT


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
        return self._completed(*arguments, cwd=cwd).stdout

    def said(self, *arguments: str | Path) -> str:
        """What `nix ARGUMENTS…` says on stderr, traces too; raises `NixFailed`."""
        return self._completed(*arguments).stderr

    def _completed(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
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
        return done

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


def point_at_model(nix: Nix, root: Path) -> None:
    """Lock both inputs of the flake at `root` to its own model of nixpkgs."""
    model = root / "tests/nix/nixpkgs"
    locked = {"type": "path", "path": str(model), "narHash": nix.run("hash", "path", "--sri", model).strip()}
    lock = json.loads((ROOT / "flake.lock").read_text())
    lock["nodes"]["nixpkgs"]["locked"] = locked
    lock["nodes"]["nixpkgs-0_11_2"]["locked"] = {**locked, "dir": "releases/0.11.2"}
    (root / "flake.lock").write_text(json.dumps(lock))
