"""Find the Python that a release wants: on PATH, under pyenv, or managed by uv."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import MissingError, UsageError
from vllm_variants.system import process

_ASK = """
import json, platform, sys, sysconfig
print(json.dumps([sys.executable, platform.python_version(), platform.python_implementation(),
                  bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""


@dataclass(frozen=True)
class Interpreter:
    """A CPython: the real path of its program, its version `3.12.1`, and where it was found."""

    path: Path
    version: str
    found: str


def find(minor: str, asked: Path | None = None) -> Interpreter:
    """A CPython of version `minor` (`3.12`); `asked` is the only candidate when given.

    Raises `MissingError` with the ways to get one, `UsageError` when `asked` is another Python.
    """
    if asked:
        version = _version(asked, minor)
        if version:
            return Interpreter(asked.resolve(), version, "asked for")
        raise UsageError(
            f"{asked} is no CPython {minor}", hint=f"name a Python {minor}, or leave out --python"
        )
    for path, found in _candidates(minor):
        version = _version(path, minor)
        if version:
            return Interpreter(path.resolve(), version, found)
    raise MissingError(
        f"no Python {minor} on PATH, under pyenv or managed by uv",
        hint=f"`{_uv()} python install {minor}`, `pyenv install {minor}` or your system's python{minor}",
    )


def _uv() -> str:
    """How a person calls uv here: by its name, or where ours is."""
    return "uv" if shutil.which("uv") else process.uv()


def _candidates(minor: str) -> Iterator[tuple[Path, str]]:
    pyenv = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")]
    for folder in map(Path, os.get_exec_path()):
        if folder.name == "shims":
            # A shim runs whatever version is current: ask pyenv's versions themselves, below.
            pyenv.append(folder.parent)
            continue
        for name in (f"python{minor}", "python3", "python"):
            if (folder / name).is_file():
                yield folder / name, "on PATH"
    for root in dict.fromkeys(pyenv):
        for path in sorted(root.glob(f"versions/{minor}.*/bin/python"), key=_patch, reverse=True):
            yield path, "under pyenv"
    managed = _managed(minor)
    if managed:
        yield managed, "managed by uv"


def _patch(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.parts[-3]))


def _managed(minor: str) -> Path | None:
    command = [
        process.uv(),
        "python",
        "find",
        "--no-project",
        "--no-python-downloads",
        "--managed-python",
    ]
    try:
        found = subprocess.run([*command, minor], capture_output=True, text=True, check=False)
    except OSError:  # a uv that cannot be run manages no Python
        return None
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def _version(path: Path, minor: str) -> str | None:
    """The version of a CPython at `path` if it is a `minor` one with a GIL that runs; else None."""
    try:
        told = subprocess.run(
            [path, "-I", "-c", _ASK], capture_output=True, text=True, check=True, timeout=20
        ).stdout
        _, version, implementation, free_threaded = json.loads(told)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    fits = version.startswith(f"{minor}.") and implementation == "CPython" and not free_threaded
    return str(version) if fits else None
