"""What a result is made of when it needs nothing of its host: files, texts and links, by their paths.

    bin/        Python itself, `python` and what wheels brought, each starting the Python beside it
    lib/        Python's standard library, the packages, libraries of the host that Python needs
    include/    Python.h, with which Triton compiles its launchers
    share/vllm-variants/    the manifests of the result and of the export, licences, what is in it

It is a plan: nothing is copied before a form writes it, to a folder, an archive or the layers of an image.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vllm_variants.builders.wheels import launchers
from vllm_variants.errors import InputError
from vllm_variants.export import report
from vllm_variants.export.checked import lost
from vllm_variants.export.interpreter import Runtime
from vllm_variants.model import results
from vllm_variants.model.results import DamagedError, Result

_FIRST = "Python of this tree, and nothing of the host's packages. It may lie anywhere, and be read-only."
_NAMED_USER = """\
# torch asks for the user's name, and a user that this machine does not know (a cluster's, NFS) has none.
[ -n "${LOGNAME-}${USER-}" ] || {
  LOGNAME=$(id -un 2>/dev/null) || LOGNAME=$(id -u)
  export LOGNAME
}
"""
_LIBRARIES = '''\
"""Libraries that wheels expect of every host: its own, or those of this tree where it has none."""

import ctypes
import os

_FOLDER = os.path.join(os.path.dirname(__file__), "..", "..", "fallback")
for _name in ("libgcc_s.so.1", "libstdc++.so.6"):
    try:
        ctypes.CDLL(_name)
    except OSError:
        ctypes.CDLL(os.path.join(_FOLDER, _name), ctypes.RTLD_GLOBAL)
'''
_OURS = "_vllm_variants_libraries"
_PYTHON = re.compile(r"bin/python(3(\.\d+)?)?")
_NOT_TAKEN = frozenset({".gitignore", ".lock", "CACHEDIR.TAG", "pyvenv.cfg", "lib64"})
"""Of a result's top: what a virtual environment has, which the tree is not."""


@dataclass(frozen=True)
class File:
    """A file whose bytes are those of `source`; `size` in bytes, `recorded` the hashes that it may have."""

    path: str
    source: Path
    size: int
    executable: bool
    recorded: Collection[str] = ()


@dataclass(frozen=True)
class Text:
    """A file that is made for the export."""

    path: str
    data: bytes
    executable: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)


@dataclass(frozen=True)
class Link:
    """A symbolic link to something in the tree, relative to its folder."""

    path: str
    target: str
    size: int = 0


Entry = File | Text | Link


@dataclass(frozen=True)
class Tree:
    """The parts of one result, each sorted by path."""

    python: tuple[Entry, ...]
    packages: tuple[Entry, ...]
    launchers: tuple[Entry, ...]

    @property
    def entries(self) -> list[Entry]:
        """All of it, sorted by path."""
        return sorted((*self.python, *self.packages, *self.launchers), key=lambda entry: entry.path)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


def plan(result: Result, runtime: Runtime, recorded: Mapping[str, Collection[str]]) -> Tree:
    """The tree of a result that runs with `runtime`, without the export's own manifest.

    `recorded` are the hashes of the result's files, by path, as its RECORDs have them.

    Raises `DamagedError` for a result that lost a file, has links out of itself or something that is no file.
    """
    python = tuple(_scanned(runtime.path, ""))
    packages: list[Entry] = []
    launchers = list(_launchers(runtime))
    for name in sorted(os.listdir(result.path)):  # noqa: PTH208 (names are what is needed)
        if name in _NOT_TAKEN:
            continue
        for entry in _scanned(result.path, name):
            if not _is_python(entry.path):
                part = packages if entry.path.startswith("lib/") else launchers
                part.append(_of_result(entry, result, recorded) if isinstance(entry, File) else entry)
    present = {entry.path for entry in (*packages, *launchers)}
    for path in sorted(recorded.keys() - present):
        raise lost(result.path / path)
    taken = {entry.path for entry in (*python, *launchers)}
    clashes = sorted(taken & {entry.path for entry in packages})
    if clashes:
        raise DamagedError(
            f"{result.path} has {clashes[0]}, which Python has too", hint="build the variant again"
        )
    return Tree(python, _sorted(packages), _sorted(launchers))


def scanned(folder: Path, prefix: str) -> list[Entry]:
    """Everything in a folder, as it will be in the folder `prefix` of a tree."""
    return [replace(entry, path=f"{prefix}/{entry.path}") for entry in _scanned(folder, "")]


def folders_of(entries: Sequence[Entry]) -> list[str]:
    """Every folder above an entry, sorted, without the top."""
    found = {str(folder) for entry in entries for folder in PurePosixPath(entry.path).parents}
    return sorted(found - {"."})


def site_packages(runtime: Runtime) -> str:
    """Where the packages lie in the tree."""
    return f"lib/python{runtime.minor}/site-packages"


def _sorted(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _is_python(path: str) -> bool:
    """Whether this is one of a result's ways to the host's interpreter, and no program of a package."""
    return _PYTHON.fullmatch(path) is not None


def _launchers(runtime: Runtime) -> Iterator[Entry]:
    site = site_packages(runtime)
    program = launchers.program(runtime.minor, "tree", _FIRST, _NAMED_USER).encode()
    yield Text("bin/python", program, executable=True)
    yield Text("bin/python3", program, executable=True)
    yield Text(f"{site}/{_OURS}.pth", f"import {_OURS}\n".encode())
    yield Text(f"{site}/{_OURS}.py", _LIBRARIES.encode())
    yield Link("lib64", "lib")
    if runtime.site != site:
        depth = runtime.site.count("/")
        yield Link(runtime.site, "../" * depth + site)


def _of_result(file: File, result: Result, recorded: Mapping[str, Collection[str]]) -> Entry:
    """A file with its hashes. The manifest loses the moment of its build: two builds give the same bytes."""
    if file.path == str(results.MANIFEST):
        return Text(file.path, report.text(report.timeless(result.manifest)).encode())
    return replace(file, recorded=recorded[file.path]) if file.path in recorded else file


def _scanned(root: Path, name: str) -> Iterator[Entry]:
    """Everything at `root`/`name`, sorted by folder."""
    path = os.path.join(root, name) if name else str(root)  # noqa: PTH118 (50,000 files: no Path each)
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        for child in sorted(os.listdir(path)):  # noqa: PTH208
            yield from _scanned(root, f"{name}/{child}" if name else child)
    elif stat.S_ISREG(status.st_mode):
        yield File(name, Path(path), status.st_size, bool(status.st_mode & stat.S_IXUSR))
    elif stat.S_ISLNK(status.st_mode):
        yield _link(root, name, os.readlink(path))  # noqa: PTH115
    else:
        raise DamagedError(f"{path} is no file, folder or link", hint="build the variant again")


def _link(root: Path, name: str, target: str) -> Link:
    if not _is_python(name) and (os.path.isabs(target) or not _is_within(root, name, target)):  # noqa: PTH117
        raise InputError(
            f"{root / name} leads out of the result, to {target}", hint="build the variant again"
        )
    return Link(name, target)


def _is_within(root: Path, name: str, target: str) -> bool:
    """Whether a link leads to a place in `root`, through whatever other links.

    The last part of its target may be a link too: that is looked at by itself.
    """
    top = os.path.realpath(root)
    folder, last = os.path.split(target.rstrip("/"))
    lands = os.path.realpath(os.path.join(top, os.path.dirname(name), folder))  # noqa: PTH118, PTH120
    lands = os.path.normpath(os.path.join(lands, last))  # noqa: PTH118
    return lands == top or lands.startswith(f"{top}{os.sep}")
