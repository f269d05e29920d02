"""A machine with Nix, a checkout and a model of nixpkgs, on which `vllm-variants build` is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import source_model
from validating import require_valid

SETTINGS = """
experimental-features = nix-command flakes
substituters =
flake-registry =
sandbox = false
warn-dirty = false
"""
# What a store with another root needs to see of this machine: the model builds with its programs.
SEEN = " ".join(p for p in ("/bin", "/usr", "/lib", "/lib64", "/etc") if Path(p).exists())


@dataclass
class Farm:
    """Runs builds. `environment` is theirs; each `run` has links and state of the farm's own."""

    root: Path
    checkout: Path
    environment: dict[str, str]
    state: Path = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.root / "state"
        self.links.mkdir()

    @property
    def links(self) -> Path:
        return self.root / "links"

    def model(self, while_building: str = "", *, fresh: bool = True) -> Path:
        """A model of nixpkgs; a fresh one has never been built from, anywhere."""
        name = uuid.uuid4().hex
        first = f": {name}; " if fresh else ""
        return source_model.model(self.root / f"model-{name[:8]}", first + while_building)

    def command(self, model: Path | str, *arguments: str) -> list[str]:
        words = [sys.executable, "-m", "vllm_variants", "build", "--via", "nix", "--json"]
        words += ["--flake", f"path:{self.checkout}", "--override-input", f"nixpkgs=path:{model}"]
        return [*words, "--links", str(self.links), "--logs", str(self.root / "logs"), *arguments]

    def run(self, model: Path | str, *arguments: str, env: Mapping[str, str] | None = None) -> Run:
        return self.start(self.command(model, *arguments), env)

    def start(self, command: list[str], env: Mapping[str, str] | None = None) -> Run:
        completed = subprocess.run(
            command,
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return Run(completed.returncode, completed.stdout, completed.stderr)

    def link(self, short: str) -> Path:
        return self.links / f"result-vllm-python312-cuda12_9-{short}"

    def nix(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["nix", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def log(self, name: str) -> str:
        """A variant's log by its short name, or that of something it needs, for every variant that does."""
        folder = self.root / "logs"
        logs = [*folder.glob(f"{name}.log"), *folder.glob(f"{name}-????????.log")]
        assert logs, f"no log is called {name}"
        return "".join(path.read_text() for path in logs)


@dataclass(frozen=True)
class Run:
    """How a build ended."""

    status: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """The outcomes by short name; the document is held to its schema."""
        document = json.loads(self.out)
        require_valid(document)
        return {row["variant"].split("cuda12_9-")[1]: row for row in document["outcomes"]}


def farm(root: Path) -> Farm:
    """A farm below `root`; skips the test where Nix cannot be had or cannot build the model."""
    program = shutil.which("nix") or _from_debian()
    environment = {
        **os.environ,
        "PATH": f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}",
        "NIX_CONFIG": SETTINGS,
        "PYTHONPATH": str(source_model.ROOT / "python"),
        "XDG_STATE_HOME": str(root / "state"),
        "XDG_CACHE_HOME": str(root / "cache-home"),
    }
    made = Farm(root, source_model.checkout(root / "checkout"), environment)
    probe = """derivation { name = "probe"; system = builtins.currentSystem; builder = "/bin/sh";
        args = [ "-c" "PATH=/usr/bin:/bin; mkdir $out" ]; }"""
    completed = made.nix("build", "--no-link", "--print-out-paths", "--impure", "--expr", probe)
    if completed.returncode or not Path(completed.stdout.strip()).is_dir():
        pytest.skip(f"this Nix cannot build the model: {completed.stderr.strip()[-200:]}")
    return made


def holding(word: str) -> list[str]:
    """The processes that run and have `word` in their arguments or their environment."""
    holders = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if word.encode() in text and state not in "ZX":
            holders.append(folder.name)
    return holders


def _from_debian() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    prefix = cache / "vllm-variants" / "nix-on-debian"
    script = source_model.ROOT / "tests" / "nix" / "nix-on-debian.sh"
    done = subprocess.run(["sh", script, prefix], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    return str(prefix / "bin" / "nix")
