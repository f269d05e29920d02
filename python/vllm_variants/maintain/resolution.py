"""What uv resolves a vLLM to, and the stack that this is: torch, CUDA, driver, C library.

The resolution is read from a pylock file (PEP 751), which names every wheel.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging import tags

from vllm_variants.builders.wheels import locks
from vllm_variants.errors import Error, UnsupportedError
from vllm_variants.model import toml_file, toolkits
from vllm_variants.model.variants import Matrix
from vllm_variants.system import uv
from vllm_variants.versions import numbers

_NEWEST_GLIBC = "2_39"  # nothing of a wheel is refused for it: what it needs is derived
_OLD_NAMES = {"manylinux1": "2_5", "manylinux2010": "2_12", "manylinux2014": "2_17"}  # PEP 600
_RUNTIME = ("cuda-toolkit", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu13")
# Packages whose versions are their toolkit's: nvidia-cuda-nvcc 13.5.37 is CUDA 13.5's.
_OF_TOOLKIT = re.compile(
    r"(nvidia-(cuda-(cccl|crt|cupti|nvcc|nvrtc|runtime)|nvvm|nvjitlink|nvtx)(-cu\d+)?|cuda-(bindings|python))"
)


@dataclass(frozen=True)
class Resolution:
    """A release's packages on one system: name → version, and name → the file names of its wheels."""

    system: str
    versions: Mapping[str, str]
    wheels: Mapping[str, tuple[str, ...]]

    @property
    def torch(self) -> str:
        """torch's version, without the build that follows `+`."""
        return self.versions["torch"].partition("+")[0]

    @property
    def cuda(self) -> str:
        """The CUDA that torch brings, `13.0`; `UnsupportedError` where it brings none."""
        for name in _RUNTIME:
            if version := self.versions.get(name):
                return ".".join(version.split(".")[:2])
        raise UnsupportedError(
            f"the torch {self.torch} that the index has for {self.system} brings no CUDA",
            hint="write the release by hand: CONTRIBUTING.md, “add a release by hand”",
        )

    def glibc(self, python: str) -> str:
        """The oldest C library, `2.34`, that has a wheel of every package for this Python (`3.12`)."""
        architecture = locks.platform_of(self.system)
        needed = [numbers("2.17")]  # the oldest that wheels of today are made for
        for files in self.wheels.values():
            oldest = [own for file in files if (own := _glibc(file, architecture, python)) is not None]
            if oldest:
                needed.append(min(oldest))
        return ".".join(map(str, max(needed)))


def resolve(release: str, system: str, python: str, overrides: Path | None, aside: Path) -> Resolution:
    """Ask uv for the newest set of wheels with this vLLM; needs the index, and writes into `aside` alone.

    Raises `Error` where there is none, with uv's reason above it.
    """
    requirements = aside / "release.in"
    requirements.write_text(f"vllm=={release}\n", encoding="utf-8")
    made = aside / f"pylock.{locks.platform_of(system)}.toml"
    platform = f"{locks.platform_of(system)}-manylinux_{_NEWEST_GLIBC}"
    command: list[str | Path] = ["pip", "compile", "--quiet", "--only-binary", ":all:"]
    command += ["--format", "pylock.toml", "--no-header", "--no-annotate", "--python-version", python]
    command += ["--python-platform", platform, *(("--override", overrides) if overrides else ())]
    if uv.run([*command, "--output-file", made, requirements]).status:
        raise Error(
            f"uv found no set of wheels for vLLM {release} on {system} with Python {python};"
            " its reason is above",
            hint="see which versions there are; name another Python with --python-version",
        )
    return read(made, system)


def read(pylock: Path, system: str) -> Resolution:
    """The resolution in a pylock file; raises `Error` for one that lacks torch or is none."""
    try:
        packages: Sequence[Mapping[str, Any]] = toml_file.load(pylock)["packages"]
        versions = {str(package["name"]): str(package["version"]) for package in packages}
        wheels = {
            str(package["name"]): tuple(_file(wheel) for wheel in package.get("wheels", ()))
            for package in packages
        }
    except (ValueError, KeyError, TypeError) as error:
        raise Error(f"what uv resolved cannot be read: {error}") from error
    if "torch" not in versions:
        raise Error(f"vLLM {versions.get('vllm')} asks for no torch on {system}: it is not vLLM's CUDA wheel")
    return Resolution(system, versions, wheels)


def _file(wheel: Mapping[str, Any]) -> str:
    place = str(wheel.get("name") or wheel.get("url") or wheel["path"])
    return place.partition("#")[0].rpartition("/")[2]


def _glibc(file: str, architecture: str, python: str) -> tuple[int, ...] | None:
    """The oldest C library of a wheel, (2, 28), of nothing compiled (0,); None: it is for another Python.

    A wheel's name ends in its Python, ABI and platform tags (PEP 427).
    """
    interpreters, abis, platforms = file.removesuffix(".whl").rsplit("-", 3)[1:]
    if _interpreters(python).isdisjoint(itertools.product(interpreters.split("."), abis.split("."))):
        return None
    found = []
    for tag in platforms.split("."):
        match = re.fullmatch(rf"(?:manylinux_(\d+_\d+)|(manylinux\d+))_{architecture}", tag)
        if match:
            found.append(numbers((match[1] or _OLD_NAMES.get(match[2], "2_17")).replace("_", ".")))
        elif tag == "any" or tag == f"linux_{architecture}":
            found.append((0,))
    return min(found) if found else None


@functools.cache
def _interpreters(python: str) -> frozenset[tuple[str, str]]:
    """The Python and ABI tags that a CPython (`3.12`) takes: (cp312, cp312), (cp38, abi3), (py3, none), …"""
    own, version = f"cp{python.replace('.', '')}", numbers(python)
    taken = (*tags.cpython_tags(version, [own], ["any"]), *tags.compatible_tags(version, own, ["any"]))
    return frozenset((tag.interpreter, tag.abi) for tag in taken)


def same(resolutions: Iterable[Resolution], what: str) -> str:
    """The `torch` or `cuda` of all resolutions; `UnsupportedError` where they differ between systems."""
    found = {resolution.system: str(getattr(resolution, what)) for resolution in resolutions}
    if len(set(found.values())) != 1:
        listed = ", ".join(f"{version} on {system}" for system, version in found.items())
        raise UnsupportedError(
            f"{what} is not one: {listed}", hint="a release has one stack: write it by hand"
        )
    return next(iter(found.values()))


def driver(matrix: Matrix, cuda: str) -> str:
    """The oldest driver branch of a stack: that of a release of the same CUDA, else NVIDIA's own.

    Raises `UnsupportedError` for a CUDA newer than `model/toolkits.py` knows.
    """
    for release in matrix.newest_first:
        if release.stack.cuda == cuda:
            return release.stack.driver
    branch = toolkits.driver_of(cuda)
    if branch is None:
        raise UnsupportedError(
            f"the driver that CUDA {cuda} needs is not known", hint="add it to TOOLKITS in model/toolkits.py"
        )
    return str(branch)


def overrides(resolution: Resolution) -> str:
    """The overrides of a stack: nothing of a newer toolkit, nothing of another CUDA; empty: none needed."""
    cuda = numbers(resolution.cuda)
    after = f"{cuda[0]}.{cuda[1] + 1}"
    lines = []
    for name, version in sorted(resolution.versions.items()):
        if _OF_TOOLKIT.fullmatch(name) and numbers(version)[:2] != cuda:
            lines.append(f"{name}>={resolution.cuda},<{after}")
        elif (suffix := re.search(r"-cu(\d+)$", name)) and int(suffix[1]) != cuda[0]:
            lines.append(f'{name}; sys_platform == "never"')
    if not lines:
        return ""
    head = f"# No package of a toolkit newer than CUDA {resolution.cuda}, and none of another CUDA.\n"
    return head + "".join(f"{line}\n" for line in lines)
