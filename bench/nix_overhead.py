"""How much longer `vllm-variants build --via nix` takes than a plain `nix build` of the same, in one run.

    python bench/nix_overhead.py [--seconds 20] [--jobs 8]

Builds every variant of this machine's system from the model of nixpkgs, whose builds last `--seconds`
and do nothing in that time: what is measured is the tool, not a compiler. Each cold run has a model of
its own that was never built; the order is plain, build, build, plain. `built` is the time when there is
nothing to build. Prints a JSON object; times in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import checkout
import source_model

from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system

SETTINGS = "experimental-features = nix-command flakes\nsubstituters =\nsandbox = false\nflake-registry =\n"


class Bench:
    """A folder with a checkout, and the environment of every run."""

    def __init__(self, folder: Path, seconds: float, jobs: int) -> None:
        self.folder, self.seconds, self.jobs = folder, seconds, jobs
        self.checkout = source_model.checkout(folder / "checkout")
        self.environment = {
            **os.environ,
            "NIX_CONFIG": SETTINGS,
            "PYTHONPATH": str(checkout.ROOT / "python"),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self.release = matrix.load().default
        self.variants = matrix.load().for_system(host_system())

    def model(self) -> str:
        """The address of a model that was never built."""
        name = uuid.uuid4().hex
        made = source_model.model(self.folder / name, f": {name}")
        slow = made / "behaviour" / "slow" / "default.nix"
        text = slow.read_text()
        assert "seconds = 20;" in text
        slow.write_text(text.replace("seconds = 20;", f"seconds = {self.seconds};"))
        return f"path:{made}?dir=behaviour/slow"

    def plain(self, model: str) -> float:
        """`nix build` of all of them."""
        parent = f'path:{self.checkout}#legacyPackages.{host_system()}.releases."{self.release.name}"'
        command = ["nix", "build", "--keep-going", "--max-jobs", str(self.jobs), "--cores", "1"]
        command += ["--no-write-lock-file", "--override-input", "nixpkgs", model]
        command += ["--out-link", str(self.links() / "result")]
        return self.timed([*command, *(f"{parent}.{variant.short}" for variant in self.variants)])

    def build(self, model: str) -> float:
        """`vllm-variants build --via nix` of all of them."""
        command = [sys.executable, "-m", "vllm_variants", "build", "--via", "nix", "--all"]
        command += ["--max-jobs", str(self.jobs), "--cores", "1", "--flake", f"path:{self.checkout}"]
        command += ["--override-input", f"nixpkgs={model}", "--links", str(self.links())]
        return self.timed(command)

    def links(self) -> Path:
        """A new folder for links."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def timed(self, command: Sequence[str]) -> float:
        """Run it; seconds by the clock."""
        started = time.monotonic()
        told = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if told.returncode:
            sys.exit(f"{' '.join(command)}\n{told.stderr}")
        return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=8)
    asked = parser.parse_args()
    if not shutil.which("nix"):
        sys.exit("there is no nix on PATH")
    with tempfile.TemporaryDirectory(prefix="nix-overhead-") as folder:
        bench = Bench(Path(folder), asked.seconds, asked.jobs)
        first, last = bench.plain(bench.model()), 0.0
        models = [bench.model(), bench.model()]
        builds = [bench.build(model) for model in models]
        last = bench.plain(bench.model())
        again = [bench.build(model) for model in models]
        plain_again = bench.plain(models[0])
    facts = {
        "variants": len(bench.variants),
        "seconds_each": asked.seconds,
        "jobs": asked.jobs,
        "cold": {"plain": [first, last], "build": builds, "ratio": sum(builds) / (first + last)},
        "built": {"plain": plain_again, "build": again},
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
