"""Locks: the hash-locked sets of wheels that the `wheels` builder installs.

    locks/<release>-<platform>.txt            a lock: name==version with hashes, no address
    locks/<release>.in                        what it is made from: the vLLM wheel
    locks/<stack>.overrides                   … and the torch and CUDA libraries of the stack
    locks/<stack>.<platform>.in               more packages that one platform needs
    locks/<stack>.<platform>-index.in         packages the public index lacks for that platform

`<platform>` is `x86_64` or `aarch64`, `<stack>` is `cuda12.9-torch2.9.1`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vllm_variants import data
from vllm_variants.errors import Error, InputError, MissingError, UnsupportedError
from vllm_variants.model.variants import Release
from vllm_variants.system import uv


@dataclass(frozen=True)
class Lock:
    """The requirement files of one release on one platform; `index_only` needs `--index`."""

    release: Release
    system: str
    path: Path
    index_only: Path | None

    @property
    def digest(self) -> str:
        """`sha256:…` of the lock's text, the packages from another index included."""
        texts = [path.read_bytes() for path in (self.path, self.index_only) if path]
        return f"sha256:{hashlib.sha256(b''.join(texts)).hexdigest()}"


def platform_of(system: str) -> str:
    """`x86_64` for `x86_64-linux`."""
    return system.partition("-")[0]


def wheel_platform(release: Release, system: str) -> str:
    """The platform as uv calls it: `aarch64-manylinux_2_31`, with the C library that the release asks for."""
    return f"{platform_of(system)}-manylinux_{release.glibc.replace('.', '_')}"


def find(release: Release, system: str) -> Lock:
    """The lock of `release` for `system`; `MissingError` when nobody has made it yet."""
    folder = data.root() / "locks"
    path = folder / f"{release.name}-{platform_of(system)}.txt"
    if not path.is_file():
        raise MissingError(
            f"release {release.name} has no lock for {system} ({path} is absent)",
            hint=f"make it in a checkout: ./vllm-variants lock {release.name}",
        )
    index_only = folder / f"{_stack(release)}.{platform_of(system)}-index.in"
    return Lock(release, system, path, index_only if index_only.is_file() else None)


def require_sound(lock: Lock) -> None:
    """Raise `InputError` for a lock that cannot be whole: it has no vLLM, or no torch."""
    files = [path for path in (lock.path, lock.index_only) if path]
    try:
        names = {
            re.split(r"[\s=<>!~;\[@]", line)[0].lower() for path in files for line in _requirements(path)
        }
    except ValueError as error:
        raise InputError(f"the lock {lock.path} is no text: {error}", hint=_again(lock)) from error
    missing = [name for name in ("vllm", "torch") if name not in names]
    if missing:
        what = "is empty" if not names else f"has no {' and no '.join(missing)}"
        raise InputError(f"the lock {lock.path} {what}", hint=_again(lock))


def _again(lock: Lock) -> str:
    return f"make it again in a checkout: ./vllm-variants lock {lock.release.name}"


def remake(release: Release, system: str, *, upgrade: bool = False) -> Path:
    """Resolve the lock again from its inputs, aside, and replace it; return its path.

    Versions in the old lock stay while the inputs allow them, unless `upgrade`.
    Runs `uv pip compile`, which needs the package index. Raises `Error` when uv finds no solution,
    `MissingError` without inputs and `UnsupportedError` outside a checkout.
    """
    checkout = data.checkout()
    if not checkout:
        raise UnsupportedError("locks are made in a checkout of the project, not in an installed package")
    folder = checkout / "locks"
    index_only = folder / f"{_stack(release)}.{platform_of(system)}-index.in"
    target = folder / f"{release.name}-{platform_of(system)}.txt"
    inputs = _inputs(folder, release, system)
    left_out = [line.partition("==")[0] for line in _requirements(index_only)]
    with tempfile.TemporaryDirectory(prefix=".lock.", dir=folder) as aside:
        made = Path(aside, target.name)
        if target.is_file() and not upgrade:
            shutil.copyfile(target, made)
        told = uv.run(
            [
                *compile_command(release, system),
                *("--override", folder / f"{_stack(release)}.overrides", "--output-file", made),
                *(part for name in left_out for part in ("--no-emit-package", name)),
                *inputs,
            ]
        )
        if told.status:
            raise Error(
                f"uv found no set of wheels for release {release.name} on {system}; its reason is above"
            )
        made.rename(target)
    return target


def _inputs(folder: Path, release: Release, system: str) -> list[Path]:
    """What a lock is made from; `MissingError` for a release that nobody gave any."""
    own = folder / f"{release.name}.in"
    if not own.is_file():
        raise MissingError(
            f"release {release.name} has nothing to lock: {own} is absent",
            hint=f"write vllm=={release.name} into it, or leave it all to `vllm-variants release add`",
        )
    more = folder / f"{_stack(release)}.{platform_of(system)}.in"
    return [own, more] if more.is_file() else [own]


def compile_command(release: Release, system: str) -> list[str]:
    """The arguments of `uv pip compile` for wheels of one release and system: hashes, no addresses."""
    command = ["pip", "compile", "--quiet", "--generate-hashes", "--only-binary", ":all:"]
    command += ["--no-emit-index-url", "--no-header", "--no-annotate"]
    command += ["--python-version", release.stack.python]
    return [*command, "--python-platform", wheel_platform(release, system)]


def _stack(release: Release) -> str:
    return f"cuda{release.stack.cuda}-torch{release.stack.torch}"


def _requirements(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
