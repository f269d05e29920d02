"""The ptxas of a release's CUDA: NVIDIA's wheel, locked by its hash, fetched when it is asked for.

    locks/cuda<version>.compiler.txt               the lock, made from the .in file beside it
    $XDG_DATA_HOME/vllm-variants/compilers/<digest of the lock>/
        ptxas  License.txt  compiler.json           version and sha256 of the program

The folder appears by one rename and is used without a network afterwards. `VLLM_VARIANTS_PTXAS` names
another ptxas; whichever it is, its version and digest are part of what it makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from vllm_variants import data
from vllm_variants.builders.wheels import installation
from vllm_variants.errors import Error, MissingError, ResourceError, UnsupportedError, resource_error
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.model.platforms import SYSTEMS, host_system
from vllm_variants.store import Store
from vllm_variants.system import uv

_NAMED = "VLLM_VARIANTS_PTXAS"
_FACTS = "compiler.json"


def compiler(cuda: str, *, index: str | None = None, root: Path | None = None) -> Compiler:
    """The ptxas of that CUDA (`12.9`), fetched if it is not here yet; `root` is the store's.

    Raises `MissingError` where there is no lock for that CUDA, `UnsupportedError` where NVIDIA has
    no ptxas for this machine, `ResourceError` without network or disk, and `Error` for a wheel that
    is not the locked one.
    """
    if named := os.environ.get(_NAMED):
        return Compiler.at(Path(named).absolute())
    lock = lock_of(cuda)
    folder = (root or Store.default().root) / "compilers" / hashlib.sha256(lock.read_bytes()).hexdigest()[:32]
    if not (found := _installed(folder)):
        _fetch(cuda, lock, folder, index)
        found = _installed(folder)
    if not found:
        raise Error(f"the ptxas that was fetched to {folder} is not what it was", hint=f"rm -r {folder}")
    return found


def installed(cuda: str, *, root: Path | None = None) -> Compiler | None:
    """The ptxas of that CUDA if it is here already; never uses the network."""
    if named := os.environ.get(_NAMED):
        return Compiler.at(Path(named).absolute())
    lock = lock_of(cuda)
    folder = (root or Store.default().root) / "compilers" / hashlib.sha256(lock.read_bytes()).hexdigest()[:32]
    return _installed(folder)


def lock_of(cuda: str) -> Path:
    """The lock of the compiler of that CUDA; `MissingError` when there is none."""
    path = data.root() / "locks" / f"cuda{cuda}.compiler.txt"
    if not path.is_file():
        raise MissingError(
            f"there is no lock of a compiler for CUDA {cuda} ({path} is absent)",
            hint=f"write locks/cuda{cuda}.compiler.in and run ./vllm-variants lock in a checkout",
        )
    return path


def remake(cuda: str, *, upgrade: bool = False) -> Path:
    """Lock the compiler again from its `.in` file, for every platform; return the lock's path.

    `upgrade`: take a newer build of that CUDA than the old lock's.
    """
    checkout = data.checkout()
    if not checkout:
        raise UnsupportedError("locks are made in a checkout of the project, not in an installed package")
    target = checkout / "locks" / f"cuda{cuda}.compiler.txt"
    command: list[str | Path] = ["pip", "compile", "--quiet", "--generate-hashes", "--only-binary", ":all:"]
    command += ["--no-emit-index-url", "--no-header", "--no-annotate", "--universal", "--no-deps"]
    with tempfile.TemporaryDirectory(prefix=".lock.", dir=target.parent) as aside:
        made = Path(aside, target.name)
        if target.is_file() and not upgrade:
            shutil.copyfile(target, made)
        command += ["--output-file", str(made), str(target.with_suffix(".in"))]
        if uv.run(command).status:
            raise Error(f"uv could not lock the compiler of CUDA {cuda}; its reason is above")
        made.rename(target)
    return target


def _installed(folder: Path) -> Compiler | None:
    """The compiler in a folder, if it is still the one that was put there."""
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        found = Compiler.at(folder / "ptxas")
    except (OSError, ValueError, MissingError):
        return None
    return found if isinstance(facts, dict) and facts == found.as_dict() else None


def _fetch(cuda: str, lock: Path, folder: Path, index: str | None) -> None:
    if host_system() not in SYSTEMS:
        raise UnsupportedError(
            f"NVIDIA has no ptxas for {host_system()}", hint=f"name one that runs here in {_NAMED}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as aside:
            _install(cuda, lock, Path(aside, "wheel"), index)
            _publish(_chosen(Path(aside, "wheel"), Path(aside, "compiler")), folder, Path(aside, "old"))
    except OSError as error:
        raise resource_error(error) from error


def _install(cuda: str, lock: Path, into: Path, index: str | None) -> None:
    command: list[str | Path] = ["pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    command += ["--only-binary", ":all:", "--link-mode", "copy", "--target", into]
    if index:
        command += ["--index", index]
    try:
        installation.uv_run([*command, "-r", lock], Path(sys.executable), [])
    except ResourceError as error:
        hint = error.hint or "check the network and disk"
        raise ResourceError(
            f"ptxas of CUDA {cuda} could not be fetched: {error.message}",
            hint=f"{hint}; or name a ptxas that is here in {_NAMED}",
        ) from error
    except UnsupportedError as error:
        raise UnsupportedError(
            f"there is no ptxas of CUDA {cuda} for this machine: {error.message}",
            hint=f"name one that runs here in {_NAMED}",
        ) from error


def _chosen(wheel: Path, into: Path) -> Path:
    """Of the wheel's 100 MB the program and its licence, in a folder of their own."""
    programs = sorted(wheel.glob("nvidia/*/bin/ptxas"))
    if not programs:
        raise Error("the wheel of the compiler holds no ptxas", hint="report this")
    into.mkdir()
    programs[0].replace(into / "ptxas")
    (into / "ptxas").chmod(0o755)
    for licence in wheel.glob("*.dist-info/**/License.txt"):
        licence.replace(into / licence.name)
    facts = Compiler.at(into / "ptxas").as_dict()
    (into / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    into.chmod(0o755)
    return into


def _publish(made: Path, folder: Path, old: Path) -> None:
    """Rename into place; what another process put there meanwhile is as good, what is damaged goes."""
    if folder.exists() and not _installed(folder):
        with suppress(FileNotFoundError):
            folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if not _installed(folder):
            raise
    shutil.rmtree(old, ignore_errors=True)
