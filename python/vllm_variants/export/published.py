"""The published wheels that a result was made of: the file name and the sha256 of each.

A lock has the hashes of all wheels of a version, for every platform. Which of them was installed, the
index knows: uv writes the wheels of a lock as `pylock.toml` (PyPA's "pylock.toml Specification"), from its
cache where that has the index's pages still. The installed WHEEL file has the tags, and so says which.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag, parse_tag

from vllm_variants.builders.wheels import locks
from vllm_variants.errors import Error, InputError, ResourceError, UnsupportedError
from vllm_variants.export.packages import Package, normalized
from vllm_variants.model import matrix, toml_file
from vllm_variants.model.results import Result
from vllm_variants.system import uv

_ANY_GLIBC = "manylinux_2_40"
"""The newest that uv knows: what was installed is among what it lists, whatever C library was there."""


@dataclass(frozen=True)
class PublishedWheel:
    """A wheel as it lies on an index: `address` is a URL or a path, `size` its bytes (0: not known)."""

    file: str
    sha256: str
    address: str
    size: int = 0

    @property
    def tags(self) -> frozenset[Tag]:
        """The compatibility tags of its name."""
        return parse_tag("-".join(self.file.removesuffix(".whl").split("-")[-3:]))

    @property
    def tag(self) -> str:
        """The part of its name behind the version: `cp312-cp312-linux_x86_64`, a build tag before it."""
        return "-".join(self.file.removesuffix(".whl").split("-")[2:])


def of_result(result: Result, packages: Iterable[Package]) -> dict[str, PublishedWheel]:
    """The published wheel of each package, by its name.

    Raises `InputError` when the lock is another than the result's, `ResourceError` when the index cannot be
    reached, `UnsupportedError` when it has no wheel like one that is installed.
    """
    listed = _listed(_written_by_uv(result))
    found = {}
    for package in packages:
        wheel = _installed(package, listed.get(package.name, ()))
        if wheel is None:
            raise UnsupportedError(
                f"the index has no wheel of {package.name} {package.version} with the tags of the one in "
                f"{result.path}",
                hint="build the variant again, with the index that it came from",
            )
        found[package.name] = wheel
    return found


def _written_by_uv(result: Result) -> dict[str, Any]:
    """uv's pylock.toml for the result's lock."""
    manifest = result.manifest
    release = matrix.load().release(manifest.release)
    lock = locks.find(release, manifest.system)
    if lock.digest != manifest.facts.get("lock"):
        raise InputError(
            f"{result.path} was made from another lock than this version's for release {release.name}",
            hint=f"build it again: vllm-variants build {manifest.short} --release {release.name}",
        )
    command: list[str | Path] = ["pip", "compile", "--quiet", "--no-deps", "--generate-hashes"]
    command += ["--only-binary", ":all:", "--no-header", "--python-version", release.stack.python]
    command += ["--python-platform", f"{locks.platform_of(manifest.system)}-{_ANY_GLIBC}"]
    # uv wants to know a Python, though nothing is built: this one, where PATH has none.
    command += ["--format", "pylock.toml", "--python", sys.executable]
    if index := manifest.facts.get("index"):
        command += ["--index", index]
    from_index = result.path / "share" / "vllm-variants" / "from-index.txt"
    files = [lock.path, *([from_index] if from_index.is_file() else [])]
    with tempfile.TemporaryDirectory(prefix="vllm-variants.") as folder:
        made = Path(folder, "pylock.toml")
        for offline in (["--offline"], []):  # the cache first: what was published does not change
            completed = uv.capture([*command, *offline, "--output-file", made, *files])
            if not completed.status:
                return toml_file.load(made)
    raise ResourceError(
        f"the package index did not say which wheels {manifest.short} was made of: "
        f"{_first_error(completed.stderr)}",
        hint="check the network (`vllm-variants doctor`) and the index settings of uv, then export again",
    )


def _listed(pylock: Mapping[str, Any]) -> dict[str, list[PublishedWheel]]:
    try:
        return {
            normalized(package["name"]): [_wheel(wheel) for wheel in package.get("wheels", ())]
            for package in pylock["packages"]
        }
    except (KeyError, TypeError) as error:
        raise Error(f"uv's pylock.toml cannot be read: it has no {error}") from error


def _wheel(entry: Mapping[str, Any]) -> PublishedWheel:
    address = str(entry.get("url") or entry["path"])
    file = entry.get("name") or unquote(urlsplit(address).path).rpartition("/")[2]
    return PublishedWheel(file, entry["hashes"]["sha256"], address, int(entry.get("size", 0)))


def _installed(package: Package, candidates: Iterable[PublishedWheel]) -> PublishedWheel | None:
    """The candidate that has the tags of the installed WHEEL file.

    Else the one with its interpreter and ABI: some projects rename a wheel `linux_x86_64` for the index.
    """
    lines = re.findall(r"^Tag:\s*(\S+)\s*$", package.text("WHEEL"), re.MULTILINE)
    tags = frozenset(tag for line in lines for tag in parse_tag(line))
    wheels = list(candidates)
    same = [wheel for wheel in wheels if wheel.tags == tags]
    renamed = [wheel for wheel in wheels if _abis(wheel.tags) == _abis(tags)]
    return next(iter([*same, *renamed]), None)


def _abis(tags: frozenset[Tag]) -> set[tuple[str, str]]:
    return {(tag.interpreter, tag.abi) for tag in tags}


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "×"))]
    return re.sub(r"^(error:|×)\s*", "", (errors or lines or ["it said nothing"])[0])
