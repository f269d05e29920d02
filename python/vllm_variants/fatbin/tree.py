"""Slim a tree: every library in it, on all cores.

Symbolic links are left alone: what they point to is slimmed where it lies, if it lies in the tree.
Names of one inode in the tree stay names of one inode. Names of it outside the tree, a package
cache's for instance, keep the old bytes.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.errors import InputError, Interrupted, ResourceError, resource_error
from vllm_variants.fatbin import workers
from vllm_variants.fatbin.library import FileReport
from vllm_variants.fatbin.native.library import Native, NativeLibrary, compile_tree
from vllm_variants.fatbin.planning import SMALLEST_HOLE
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.serving import path_as_text
from vllm_variants.fatbin.source import open_regular
from vllm_variants.fatbin.worker import slimmed
from vllm_variants.model.capability import Capability
from vllm_variants.system import atomic, interruption

Progress = Callable[[int, int, str], None]
"""Called after each library: bytes done, bytes in all, the library's path in the tree."""


@dataclass(frozen=True)
class SlimReport:
    """What slimming did to a tree. `before` and `after` count each inode of the whole tree once, in bytes."""

    root: str
    devices: tuple[Capability, ...]
    before: int
    after: int
    files: tuple[FileReport, ...]
    native: tuple[NativeLibrary, ...] = ()
    """The libraries with PTX that the devices would compile, where that was compiled."""

    @property
    def saved(self) -> int:
        """Bytes."""
        return self.before - self.after

    @property
    def saved_by_rule(self) -> dict[str, int]:
        """Bytes that each rule took from all files: `images`, `native`, `compress`, `symbols`."""
        sums = Counter[str]()
        for file in self.files:
            sums.update(file.saved)
        return {rule: sums[rule] for rule in ("images", "native", "compress", "symbols")}

    @property
    def shared_images(self) -> int:
        """How many images another result had stored already."""
        return sum(file.shared_images for file in self.files)

    @property
    def changed(self) -> list[FileReport]:
        """The files that were rewritten."""
        return [file for file in self.files if file.changed]

    @property
    def failed(self) -> list[FileReport]:
        """Files that something outside them kept from being slimmed: another run may succeed."""
        return [file for file in self.files if file.failed]

    @property
    def unserved(self) -> list[str]:
        """The devices (`sm90`) for which nothing in any of the libraries runs."""
        judged = [file for file in self.files if not file.failed and file.device_code]
        return [d.sm for d in self.devices if judged and all(d.sm in file.unserved for file in judged)]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON; sizes in bytes."""
        return {
            "schema": documents.SLIM,
            "root": self.root,
            "devices": [str(device) for device in self.devices],
            "before": self.before,
            "after": self.after,
            "ratio": round(self.after / self.before, 4) if self.before else 1.0,
            "saved": self.saved_by_rule,
            "files": [file.as_dict() for file in self.files],
            "native": [library.as_dict() for library in self.native],
        }


class Stopped(Interrupted):
    """The slimming of a tree was stopped: `slimmed` of its `libraries` are, the rest are as they were."""

    def __init__(self, slimmed: int, libraries: int) -> None:
        super().__init__()
        self.slimmed, self.libraries = slimmed, libraries


@dataclass(frozen=True)
class _Library:
    """A file to slim: its inode (device, number), its size in bytes, and its names."""

    inode: tuple[int, int]
    size: int
    names: tuple[Path, ...]

    @property
    def replaced(self) -> bool:
        """Whether its first name belongs to another file now."""
        with suppress(OSError):
            status = self.names[0].lstat()
            return (status.st_dev, status.st_ino) != self.inode
        return False


def slim_tree(
    root: Path,
    sms: Sequence[Capability],
    rules: Rules | None = None,
    *,
    native: Native | None = None,
    stored: Sequence[Path] = (),
    progress: Progress = lambda done, total, path: None,
    jobs: int | None = None,
    durable: bool = True,
    dry_run: bool = False,
) -> SlimReport:
    """Slim every library under `root`, in place, for devices `sms`; none: no image is dropped.

    Files are replaced, never written to. `native`: compile the PTX that the devices would compile.
    `stored` are trees with the same libraries that were slimmed with the same encoding, for other devices:
    images that they have are taken from there, proven as all are, and not compressed again.
    `jobs` processes work (default and 0: one a core). `durable`: each new file is on the disk before
    it replaces an old one; a tree that nobody uses yet does not need that. `dry_run`: nothing is
    written. A library that is malformed, or whose new file could not be proven, is kept as it is, and
    its report says why; so is what could not be read or written, and its report is `failed`. Raises
    `Stopped` for `Interrupted` (not of a `dry_run`), and `ResourceError` when there is no room.
    """
    rules = rules or Rules()
    reports: list[FileReport] = []
    inodes = _without_leftovers(regular_files(root, _noting(reports, root)), remove=not dry_run)
    before = sum(size for size, _ in inodes.values())
    smallest = SMALLEST_HOLE if rules.keep_symbols and not native else _SMALLEST_FILE
    work = [
        _Library(inode, size, tuple(Path(name) for name in names))
        for inode, (size, names) in sorted(inodes.items(), key=lambda item: item[1], reverse=True)
        if size >= smallest and _is_readable_elf(names[0], _noting(reports, root))
    ]
    total, done = sum(library.size for library in work), 0
    compiled: dict[Path, NativeLibrary] = {}
    try:
        if native:
            compiled = compile_tree([library.names[0] for library in work], root, sms, rules, native)
        request = _Requests(root, tuple(sms), rules, compiled, stored, durable, dry_run)
        with closing(_slimmed(work, request, jobs or len(os.sched_getaffinity(0)))) as ready:
            for library, report in ready:
                if report.changed and not dry_run:
                    reports += _relinked(library, root)
                done += library.size
                name = str(library.names[0].relative_to(root))
                progress(done, total, name)
                if report.changed or report.kept not in UNREMARKABLE:
                    reports.append(replace(report, path=name))
    except BaseException as error:
        if dry_run:
            raise
        for library in work:  # a worker that was killed could not do it
            atomic.remove_leftovers_of(library.names[0])
        if isinstance(error, Interrupted):
            raise Stopped(sum(library.replaced for library in work), len(work)) from error
        raise
    saved = sum(report.before - report.after for report in reports)
    files = tuple(sorted(reports, key=lambda report: report.path))
    return SlimReport(str(root), tuple(sms), before, before - saved, files, tuple(compiled.values()))


_WORKER = "vllm_variants.fatbin.worker"
_SMALLEST_FILE = 0x1000
"""Bytes; what is shorter than a page has no symbols, and no code, worth a new file."""
UNREMARKABLE = ("no ELF64 library", "no device code")


def _relinked(library: _Library, root: Path) -> list[FileReport]:
    """Make the library's other names names of its new file; the reports of those that stay what they are."""
    failed = []
    first, *others = library.names
    for name in others:
        try:
            if atomic.hard_link(name, first, over=library.inode):
                continue
            why = "was replaced or removed by somebody else while the tree was slimmed"
        except OSError as error:
            why = f"cannot be written: {error.strerror}"
        failed.append(FileReport(str(name.relative_to(root)), 0, 0, kept=why, failed=True))
    return failed


Unreadable = Callable[[str, OSError], None]
"""Called for a file or folder that cannot be read, with its path."""


def _raise(path: str, error: OSError) -> None:
    raise error


def _noting(reports: list[FileReport], root: Path) -> Unreadable:
    def note(path: str, error: OSError) -> None:
        name = str(Path(path).relative_to(root))
        reports.append(FileReport(name, 0, 0, kept=f"cannot be read: {error.strerror}", failed=True))

    return note


def regular_files(
    root: Path, unreadable: Unreadable = _raise
) -> dict[tuple[int, int], tuple[int, list[str]]]:
    """Per inode (device, number) below `root`: its size in bytes and its names, sorted.

    Raises `OSError` for a folder that cannot be read, unless `unreadable` takes it.
    """
    found: dict[tuple[int, int], tuple[int, list[str]]] = {}
    folders = [os.fspath(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        _note(entry, found)
        except OSError as error:
            unreadable(folder, error)
    for _, names in found.values():
        names.sort()
    return found


def _note(entry: os.DirEntry[str], found: dict[tuple[int, int], tuple[int, list[str]]]) -> None:
    with suppress(FileNotFoundError):  # removed since the folder was read
        status = entry.stat(follow_symlinks=False)
        found.setdefault((status.st_dev, status.st_ino), (status.st_size, []))[1].append(entry.path)


def _without_leftovers(
    inodes: dict[tuple[int, int], tuple[int, list[str]]], *, remove: bool
) -> dict[tuple[int, int], tuple[int, list[str]]]:
    """Pass over what runs have aside, and `remove` what those left there that were killed."""
    found = {}
    for inode, (size, names) in inodes.items():
        aside = [name for name in names if atomic.is_leftover_name(name.rpartition("/")[2])]
        others = [name for name in names if name not in aside] if aside else names
        if others:
            found[inode] = size, others
        for name in aside if remove else ():
            with suppress(OSError):
                atomic.remove_leftover(Path(name))
    return found


def elf_files(root: Path) -> list[Path]:
    """One name of each ELF file below `root` that can be read, the largest first."""
    found = sorted(regular_files(root, _pass_over).values(), reverse=True)
    return [
        Path(names[0])
        for size, names in found
        if size >= _SMALLEST_FILE and _is_readable_elf(names[0], _pass_over)
    ]


def _pass_over(path: str, error: OSError) -> None:
    """For what cannot be read: slimming says so."""


def is_elf(name: str) -> bool:
    """Whether a file begins as an ELF file does. Raises `OSError`, or `InputError` for no regular file."""
    descriptor = open_regular(name)
    try:
        return os.pread(descriptor, 4, 0) == b"\x7fELF"
    finally:
        os.close(descriptor)


def _is_readable_elf(name: str, unreadable: Unreadable) -> bool:
    try:
        return is_elf(name)
    except (FileNotFoundError, InputError):  # removed or replaced since the folder was read
        return False
    except OSError as error:
        unreadable(name, error)
        return False


@dataclass(frozen=True)
class _Requests:
    """What is asked of the process that slims a library, beside its path."""

    root: Path
    devices: tuple[Capability, ...]
    rules: Rules
    compiled: Mapping[Path, NativeLibrary]
    stored: Sequence[Path]
    durable: bool
    dry_run: bool

    def of(self, library: _Library, folder: Path) -> dict[str, Any]:
        """The request for one library, as JSON; its new images are in a file of `folder`."""
        path = library.names[0]
        request = {
            "path": path_as_text(path),
            "stored": [path_as_text(copy / path.relative_to(self.root)) for copy in self.stored],
            "devices": [str(device) for device in self.devices],
            "rules": self.rules.as_dict(),
            "linked": len(library.names) > 1,
            "durable": self.durable,
            "dry_run": self.dry_run,
        }
        if path in self.compiled:
            file = folder / f"{len(list(folder.iterdir()))}.images"
            file.write_bytes(pickle.dumps(dict(self.compiled[path].containers)))
            request["compiled"] = str(file)
        return request


def _slimmed(
    work: Sequence[_Library], requests: _Requests, jobs: int
) -> Generator[tuple[_Library, FileReport], None, None]:
    """Each library with its report, as they become ready."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="vllm-variants-slim."))
    except OSError as error:
        raise resource_error(error) from error
    try:
        every = [requests.of(library, folder) for library in work]
        if jobs == 1 or len(work) < 2 or not sys.executable:
            for library, request in zip(work, every, strict=True):
                yield library, slimmed(request)
            return
        with closing(workers.answers(workers.command(_WORKER), every, jobs)) as answers:
            for index, answer in answers:
                yield work[index], _report(answer)
    finally:
        with interruption.held():
            shutil.rmtree(folder, ignore_errors=True)


def _report(answer: dict[str, Any]) -> FileReport:
    """A worker's answer; raises the `ResourceError` that it met."""
    if "crash" in answer:
        raise RuntimeError(f"a process that slimmed failed:\n{answer['crash']}")
    if "error" in answer:
        raise ResourceError(answer["error"], hint=answer["hint"])
    return FileReport.from_dict(answer["report"])
