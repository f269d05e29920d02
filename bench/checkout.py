"""Imported first by every bench: the code, tests and dependencies of this checkout, for any Python.

`python bench/NAME.py` then works as it stands. Where the Python that runs lacks the dependencies, the
bench starts again with the checkout's `.venv`, which `./vllm-variants test` sets up.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_NEEDED = ("typer", "rich", "toml", "pytest")


_ROOM = 1 << 31  # bytes


def memory_folder() -> str | None:
    """A folder in memory for temporary files; None where there is none, or less than 2 GiB of it."""
    shared = "/dev/shm"
    return shared if os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _ROOM else None


def _start() -> None:
    folders = ("python", "tests/unit/fatbin", "tests/e2e", "tests/faults")
    sys.path[:0] = [str(ROOT / folder) for folder in folders]
    if all(find_spec(name) for name in _NEEDED):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == ROOT / ".venv":
        missing = ", ".join(name for name in _NEEDED if not find_spec(name))
        sys.exit(f"error: this Python lacks {missing}\nhint: ./vllm-variants test, once, sets up .venv")
    os.execv(python, [str(python), *sys.orig_argv[1:]])


_start()
