"""A requirements lock: wheels by name, version and hash, from uv's cache where they are, else from the index.

Of a wheel at an index its central directory is fetched, then those members alone that are called shared
libraries, each read once while it goes by: nothing is written to disk.
"""

from __future__ import annotations

import io
import platform
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from vllm_variants.audit.cache import Cache
from vllm_variants.audit.sieve import summarise_stream
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.audit.targets.found import Found, Kind, Progress
from vllm_variants.audit.targets.index import Index, Listed
from vllm_variants.audit.targets.layers import reason
from vllm_variants.audit.targets.trees import read_tree
from vllm_variants.errors import InputError, ResourceError
from vllm_variants.fatbin.source import UNREADABLE
from vllm_variants.system import uv
from vllm_variants.system.http import RemoteFile, Unreachable
from vllm_variants.versions import numbers

_PIN = re.compile(
    r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*==\s*([^\s;\\#]+)(?:\s*;\s*((?:(?!\s--hash)[^\\#\n])*))?",
    re.MULTILINE,
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_LIBRARY = re.compile(r"\.so(?:\.\d+)*$")
_MACHINE = re.compile(r"(x86_64|aarch64)")
_PYTHON = "cp312"
"""Of wheels for several Pythons the one to read: device code is the same in all."""


@dataclass(frozen=True)
class Pin:
    """One package of a lock: its name in normal form, version, marker, and the hashes of its files."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]


def is_lock(path: Path, head: bytes) -> bool:
    """Whether a file looks like a requirements lock: a text with pinned packages."""
    if b"\0" in head or path.suffix not in (".txt", ".lock", ".in", ""):
        return False
    return _PIN.search(head.decode("utf-8", "replace")) is not None


def pins(path: Path) -> list[Pin]:
    """The packages of a lock. Raises `InputError` for one that has none, or one without hashes."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = list(_PIN.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    listed = [
        Pin(
            _normal(match[1]),
            match[2],
            (match[3] or "").strip(),
            frozenset(_HASH.findall(text[match.end() : end])),
        )
        for match, end in zip(found, ends, strict=True)
    ]
    bare = [pin.name for pin in listed if not pin.hashes]
    if bare or not listed:
        what = f"{bare[0]} has no hash" if bare else "it names no package as NAME==VERSION"
        raise InputError(
            f"{path} is no lock that says which wheels it means: {what}",
            hint="make one: uv pip compile --generate-hashes requirements.in -o lock.txt",
        )
    return listed


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path, progress: Progress) -> Found:
    """The libraries of all wheels of a lock for Linux on the machine that its name says, else on this one.

    Raises `InputError` for a file that is none, `ResourceError` where no wheel can be reached.
    """
    machine = (_MACHINE.search(path.name) or [platform.machine()])[0]
    wanted = [pin for pin in pins(path) if _concerns(pin.marker, machine)]
    cached, index = UvCache.default(), Index.of_settings()
    libraries: list[LibrarySummary] = []
    unreached = []
    for pin in wanted:
        progress(f"{pin.name} {pin.version}")
        try:
            folder = cached.wheel(pin, machine)
            libraries += (
                _of_cache(folder, pin, progress) if folder else _of_index(index, pin, machine, progress)
            )
        except Unreachable as error:
            unreached.append(f"{pin.name} {pin.version}: {error}")
            problem = f"cannot be reached: {error}"
            libraries.append(LibrarySummary(f"{pin.name}-{pin.version}", 0, problem=problem))
    if unreached and len(unreached) == len(wanted):
        raise ResourceError(
            f"no wheel of {path} can be reached: {unreached[0]}",
            hint="name the index in UV_DEFAULT_INDEX, or install the lock and audit the environment",
        )
    release = next((pin.version.partition("+")[0] for pin in wanted if pin.name == "vllm"), None)
    note = f"wheels for {machine} and {_PYTHON}; {cached.hits} of {len(wanted)} from uv's cache"
    return Found(Kind.LOCK, tuple(libraries), release, (note,))


def _concerns(marker: str, machine: str) -> bool:
    """Whether a marker leaves Linux on a machine; what is not understood in it does not exclude."""
    for name, operator, value in re.findall(
        r"(sys_platform|platform_machine|platform_system)\s*(==|!=)\s*['\"]([^'\"]+)", marker
    ):
        actual = {"sys_platform": "linux", "platform_machine": machine, "platform_system": "Linux"}[name]
        if " or " not in marker and (actual == value) != (operator == "=="):
            return False
    return True


@dataclass
class UvCache:
    """uv's cache of wheels, unpacked; one counts where uv noted a hash of the lock for it."""

    root: Path | None
    hits: int = 0

    @classmethod
    def default(cls) -> UvCache:
        """Where uv says its cache is; empty where it does not say."""
        completed = uv.capture(["cache", "dir"])
        folder = Path(completed.stdout.strip()) if not completed.status else None
        return cls(folder if folder and folder.is_dir() else None)

    def wheel(self, pin: Pin, machine: str) -> Path | None:
        """The folder of a package's wheel for a machine; None: uv does not have it.

        Beside the link to the folder lies what uv noted when it fetched the wheel, its SHA-256 in it in
        hexadecimal (uv 0.8 to 0.13; the layout is no promise of uv's, so anything else is a miss).
        """
        if self.root is None:
            return None
        of_indexes = (f"wheels-v*/*/{pin.name}", f"wheels-v*/index/*/{pin.name}")
        for folder in (folder for pattern in of_indexes for folder in self.root.glob(pattern)):
            for entry in sorted(folder.glob(f"{pin.version}-*.http")):
                link = entry.with_suffix("")
                if not link.is_dir() or not _for_machine(entry.name, machine):
                    continue
                noted = set(re.findall(rb"[0-9a-f]{64}", entry.read_bytes()))
                if noted & {each.encode() for each in pin.hashes}:
                    self.hits += 1
                    return link.resolve()
        return None


def _for_machine(name: str, machine: str) -> bool:
    return "linux" not in name or machine in name


def _of_cache(folder: Path, pin: Pin, progress: Progress) -> list[LibrarySummary]:
    return read_tree(folder, progress, "", Cache(folder))


def _of_index(index: Index, pin: Pin, machine: str, progress: Progress) -> list[LibrarySummary]:
    files = [
        file for file in index.files(pin.name) if file.sha256 in pin.hashes and file.name.endswith(".whl")
    ]
    wheel = _best(files, machine)
    if wheel is None:
        if files:
            return []  # all of them are for other machines
        raise Unreachable("the index has no wheel with a hash of the lock")
    if wheel.name.endswith("-any.whl"):
        return []
    return list(_remote(wheel, progress))


def _best(files: Sequence[Listed], machine: str) -> Listed | None:
    """The wheel for Linux on a machine and the Python that is read, else for any of them."""
    fitting = [
        f for f in files if f.name.endswith("-any.whl") or ("linux" in f.name and f"_{machine}." in f.name)
    ]

    def preference(file: Listed) -> tuple[bool, bool, bool, tuple[int, ...]]:
        tags = file.name.removesuffix(".whl").split("-")[-3:]
        return (
            "musllinux" not in file.name,
            _PYTHON in tags[0],
            tags[1] == "abi3" or tags[0].startswith("py"),
            numbers(tags[0]),
        )

    return max(fitting, key=preference, default=None)


def _remote(wheel: Listed, progress: Progress) -> Iterator[LibrarySummary]:
    """The libraries with device code in a wheel on a server."""
    try:
        with (
            RemoteFile(wheel.url) as remote,
            zipfile.ZipFile(cast("IO[bytes]", io.BufferedReader(remote, 1 << 18))) as archive,
        ):
            for member in archive.infolist():
                if not _LIBRARY.search(member.filename):
                    continue
                progress(f"{wheel.name}: {member.filename}")
                with archive.open(member) as stream:
                    name = f"{wheel.name}!{member.filename}"
                    summary = summarise_stream(stream, member.file_size, name, member.filename)
                if summary and summary.has_device_code:
                    yield summary
    except UNREADABLE as error:
        yield LibrarySummary(wheel.name, 0, problem=f"cannot be read: {reason(error)}")
