"""Entries of a store, made by hand, and the command line that lists and removes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vllm_variants.model.results import MANIFEST, Result
from vllm_variants.store import Store

FIRST = "0123456789abcdef-vllm-python312-cuda12_9-sm90-0.13.0"
SECOND = "fedcba9876543210-vllm-python312-cuda12_9-sm90-arm64-0.11.2"
FACTS = {
    "schema": 1,
    "variant": "vllm-python312-cuda12_9-sm90",
    "short": "sm90",
    "capability": "9.0",
    "system": "x86_64-linux",
    "release": "0.13.0",
    "builder": "wheels",
    "bytes": {"installed": 9, "result": 5},
}


def fill(tree: Path) -> None:
    """Write a whole result into a folder."""
    (tree / MANIFEST).parent.mkdir(parents=True)
    (tree / MANIFEST).write_text(json.dumps(FACTS))
    (tree / "bin").mkdir()
    (tree / "bin" / "python").write_text("#!/bin/sh\n")
    (tree / "bin" / "python").chmod(0o755)


def make(where: Store, entry: str = FIRST, link: Path | None = None) -> Result:
    with where.lock(entry, lambda: None), where.building(entry) as folder:
        fill(folder)
        result = where.publish(folder, entry)
        if link:
            where.link(result, link)
    return result


def removed(where: Store) -> list[str]:
    return [gone.path.name for gone in where.gc().removed]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_cli(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_variants", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
