"""Bytecode: made by a build, so that no start compiles vLLM's Python again, and nothing writes to a result.

Three processes import vLLM when it serves, and each compiles what has no bytecode. `serving.txt` lists
the modules that serving imports; `bench/serving_modules.py` records it anew. Bytecode depends
on Python's minor version alone, so a build for another platform makes it too.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import shared_bytecode
from vllm_variants.builders.wheels.shared_bytecode import Compiled
from vllm_variants.errors import Error, resource_error
from vllm_variants.machine import memory
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.system import process

_WORKER = Path(__file__).with_name("bytecode_worker.py")
_SERVING = Path(__file__).with_name("serving.txt")


class Bytecode(StrEnum):
    """The modules that get bytecode."""

    ALL = "all"
    SERVING = "serving"
    NONE = "none"


def identity(which: Bytecode) -> str:
    """All that decides which modules get bytecode, for a result's identity."""
    return (
        f"serving {hashlib.sha256(_SERVING.read_bytes()).hexdigest()}" if which is Bytecode.SERVING else which
    )


def write(
    steps: Steps, which: Bytecode, interpreter: Interpreter, site: Path, others: Iterable[Compiled] = ()
) -> None:
    """Make the bytecode of modules in `site` (site-packages) with the result's interpreter.

    What one of `others` has of the same modules is linked instead: the result is the same, byte for byte.
    """
    if which is Bytecode.NONE:
        steps.skip("bytecode", "not asked for")
        return
    with steps.step("bytecode") as step:
        modules = _modules(site)
        if which is Bytecode.SERVING:
            listed = _listed()
            modules = [name for name in modules if _is_listed(name, listed)]
        shared = shared_bytecode.take(modules, site, interpreter.version, others)
        _compile([name for name in modules if name not in shared], interpreter, site)
        step.facts |= {"which": which.value, **_made(site), "shared": len(shared), "undo": "--bytecode none"}


def _listed() -> frozenset[str]:
    """Modules, and folders that stand for all in them: those end in a slash."""
    return frozenset(_SERVING.read_text(encoding="utf-8").splitlines())


def _is_listed(name: str, listed: frozenset[str]) -> bool:
    return name in listed or any(name[: at + 1] in listed for at, c in enumerate(name) if c == "/")


def _modules(site: Path) -> list[str]:
    """Every Python source below `site` that is a file of its own, relative to it, sorted."""
    found = []
    for folder, names, files in os.walk(site):
        names[:] = [name for name in names if name != "__pycache__"]
        place = os.path.relpath(folder, site)
        prefix = "" if place == "." else f"{place}/"
        found += [
            prefix + name
            for name in files
            if name.endswith(".py") and not os.path.islink(f"{folder}/{name}")  # noqa: PTH114 - 15,000 of them
        ]
    return sorted(found)


def _made(site: Path) -> dict[str, object]:
    """All bytecode below `site`: of how many modules, its bytes, and a digest that others hold it to."""
    try:
        names = shared_bytecode.bytecode_below(site)
        size = sum((site / name).stat().st_size for name in names)
        return {"modules": len(names), "bytes": size, "sha256": shared_bytecode.digest_of(site, names)}
    except OSError as error:
        raise resource_error(error) from error


def _compile(modules: Sequence[str], interpreter: Interpreter, site: Path) -> None:
    """Compile the modules on all processors; what is not valid Python is passed."""
    jobs = max(1, min(memory.processors(), len(modules) // 50))
    try:
        with tempfile.TemporaryDirectory(prefix="vllm-variants-bytecode.") as folder:
            commands = []
            for job in range(jobs):
                listing = Path(folder, f"{job}.txt")
                listing.write_text("".join(f"{name}\n" for name in modules[job::jobs]), encoding="utf-8")
                flags = ["-I", "-S", "-B"]
                commands.append([str(interpreter.path), *flags, str(_WORKER), str(site), str(listing)])
            completed = process.capture_all(commands, jobs)
    except OSError as error:
        raise resource_error(error) from error
    for worker in completed:
        if worker.status:
            last = (worker.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Error(f"bytecode could not be made: {last}", hint="see --bytecode none")
