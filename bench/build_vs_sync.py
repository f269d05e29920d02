"""How much longer a whole build takes than a plain `uv pip sync` of the same lock, in one run.

    python bench/build_vs_sync.py [VARIANT] [--slim] [--folder DIR]

Each side starts with an empty cache of its own and so downloads everything (10 GB each); the order
is plain, build, build, plain, so that a network that gets slower or faster weighs on both alike.
Prints a JSON object: seconds and peak memory (bytes, of the largest process) of each, the ratio of
the sums. `--slim` includes slimming; without it the build installs, audits and publishes.
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
from pathlib import Path

from checkout import ROOT

from vllm_variants.builders.wheels import locks
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.system import uv


def measured(command: list[str], env: dict[str, str]) -> tuple[float, int]:
    """Run it; seconds by the clock, and the peak resident bytes of its largest process."""
    started = time.monotonic()
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.monotonic() - started, usage.ru_maxrss * 1024


def plain(
    variant: matrix.Variant, release: matrix.Release, folder: Path, env: dict[str, str]
) -> tuple[float, int]:
    """`uv venv` and `uv pip sync`, nothing else."""
    interpreter = interpreters.find(release.stack.python)
    lock = locks.find(release, variant.system)
    script = (
        '"$0" venv -q --python "$1" "$2" && "$0" pip sync -q --require-hashes --python "$2/bin/python" "$3"'
    )
    return measured(
        ["sh", "-c", script, uv.program(), str(interpreter.path), str(folder / "venv"), str(lock.path)], env
    )


def build(variant: matrix.Variant, slim: bool, folder: Path, env: dict[str, str]) -> tuple[float, int]:
    """`vllm-variants build`, the whole pipeline."""
    more = [] if slim else ["--no-slim"]
    command = [sys.executable, "-m", "vllm_variants", "build", variant.short, "--links", str(folder), *more]
    return measured(
        command, {**env, "PYTHONPATH": str(ROOT / "python"), "XDG_DATA_HOME": str(folder / "data")}
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant", nargs="?", default="sm90")
    parser.add_argument("--slim", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the caches and results go while it runs")
    asked = parser.parse_args()
    rows = matrix.load()
    variant, release = rows.parse(asked.variant).variant, rows.default
    seconds: dict[str, list[float]] = {"plain": [], "build": []}
    peak = {"plain": 0, "build": 0}
    for side in ("plain", "build", "build", "plain"):
        folder = Path(tempfile.mkdtemp(prefix="build-vs-sync.", dir=asked.folder))
        env = {**os.environ, "UV_CACHE_DIR": str(folder / "cache")}
        try:
            took, memory = (
                plain(variant, release, folder, env)
                if side == "plain"
                else build(variant, asked.slim, folder, env)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        seconds[side].append(round(took, 1))
        peak[side] = max(peak[side], memory)
    ratio = sum(seconds["build"]) / sum(seconds["plain"])
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "slim": asked.slim, "ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
