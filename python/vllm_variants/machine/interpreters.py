"""Find the Python that a release needs: on PATH, under pyenv, or managed by uv."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import MissingError, UsageError
from vllm_variants.system import process, uv
from vllm_variants.versions import numbers

_FACTS = """
import json, platform, sysconfig
print(json.dumps([platform.python_version(), platform.python_implementation(),
                  bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""
_PATIENCE = 20.0
"""Seconds that a candidate has to say what it is."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython: the real path of its program, its version `3.12.1`, and where it was found."""

    path: Path
    version: str
    origin: str


def find(minor: str, requested: Path | None = None) -> Interpreter:
    """A CPython of version `minor` (`3.12`); `requested` is the only candidate when given.

    Raises `MissingError` with the ways to get one, `UsageError` when `requested` is another Python.
    """
    candidates = [(requested, "asked for")] if requested else _candidates(minor)
    for path, origin in candidates:
        version = _version(path, minor)
        if version:
            return Interpreter(path.resolve(), version, origin)
    if requested:
        raise UsageError(
            f"{requested} is not a CPython {minor}", hint=f"name a Python {minor}, or leave out --python"
        )
    raise MissingError(
        f"there is no Python {minor} on PATH, under pyenv or managed by uv",
        hint=f"`{_uv()} python install {minor}`, `pyenv install {minor}` or your system's python{minor}",
    )


def _uv() -> str:
    """How a person calls uv here: by its name, or where ours is."""
    return "uv" if shutil.which("uv") else uv.program()


def _candidates(minor: str) -> Iterator[tuple[Path, str]]:
    """Programs that may be such a Python, the preferred ones first, each with where it was found."""
    pyenv = [Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))]  # noqa: PTH111 (never fails)
    for folder in map(Path, os.get_exec_path()):
        if folder.name == "shims":
            # A shim runs whatever version is current: ask pyenv's versions themselves, below.
            pyenv.append(folder.parent)
            continue
        for name in (f"python{minor}", "python3", "python"):
            if (folder / name).is_file():
                yield folder / name, "on PATH"
    for root in dict.fromkeys(pyenv):
        paths = root.glob(f"versions/{minor}.*/bin/python")
        for path in sorted(paths, key=lambda path: numbers(path.parts[-3]), reverse=True):
            yield path, "under pyenv"
    managed = _managed_by_uv(minor)
    if managed:
        yield managed, "managed by uv"


def _managed_by_uv(minor: str) -> Path | None:
    # With all of the person's variables: they say where uv keeps its Pythons.
    options = ("--no-project", "--no-python-downloads", "--managed-python")
    try:
        completed = process.capture([uv.program(), "python", "find", *options, minor])
    except OSError:  # a uv that cannot be run manages no Python
        return None
    return Path(completed.stdout.strip()) if completed.status == 0 else None


def _version(path: Path, minor: str) -> str | None:
    """The version of a CPython at `path` if it is a `minor` one with a GIL that runs; else None."""
    try:
        completed = process.capture([path, "-I", "-c", _FACTS], seconds=_PATIENCE)
        version, implementation, free_threaded = json.loads(completed.stdout)
    except (OSError, ValueError, TypeError):
        return None
    is_minor = str(version).startswith(f"{minor}.") and implementation == "CPython" and not free_threaded
    return str(version) if completed.status == 0 and is_minor else None
