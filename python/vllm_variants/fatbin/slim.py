"""Slim a tree: every library in it, on all cores.

Symbolic links are left alone: what they point to is slimmed where it lies, if it lies in the tree.
Names of one inode in the tree stay names of one inode. Names of it outside the tree, a package
cache's for instance, keep the old bytes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vllm_variants.capability import Capability
from vllm_variants.errors import ResourceError
from vllm_variants.fatbin.library import SMALLEST_HOLE, FileReport, slim_file
from vllm_variants.fatbin.source import Malformed
from vllm_variants.fatbin.verify import Wrong

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

    @property
    def saved(self) -> int:
        """Bytes."""
        return self.before - self.after

    @property
    def changed(self) -> list[FileReport]:
        return [file for file in self.files if file.changed]

    def as_dict(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "devices": [str(device) for device in self.devices],
            "before": self.before,
            "after": self.after,
            "ratio": round(self.after / self.before, 4) if self.before else 1.0,
            "files": [file.as_dict() for file in self.files],
        }


def slim_tree(
    root: Path,
    sms: Sequence[Capability],
    *,
    keep_ptx: bool = False,
    resources: bool = True,
    progress: Progress = lambda done, total, path: None,
    jobs: int | None = None,
) -> SlimReport:
    """Slim every library under `root`, in place, for devices `sms`.

    Files are replaced, never written to. `resources`: see `library.slim_file`. `jobs` processes
    work (default: one a core). A library that is malformed, or whose new file could not be proven,
    is kept as it is, and its report says why.
    """
    inodes = _without_leftovers(regular_files(root))
    before = sum(size for size, _ in inodes.values())
    work = [
        (size, [Path(name) for name in names])
        for size, names in sorted(inodes.values(), reverse=True)  # the largest first
        if size >= SMALLEST_HOLE and is_elf(names[0])
    ]
    total, done, reports = sum(size for size, _ in work), 0, []
    for size, names, report in _slimmed(
        work,
        partial(_slim, devices=tuple(sms), keep_ptx=keep_ptx, resources=resources),
        jobs or len(os.sched_getaffinity(0)),
    ):
        if report.changed:
            for other in names[1:]:
                _relink(names[0], other)
        done += size
        name = str(names[0].relative_to(root))
        progress(done, total, name)
        if report.containers or report.kept not in UNREMARKABLE:
            reports.append(FileReport(**{**report.as_dict(), "path": name}))
    saved = sum(report.before - report.after for report in reports)
    return SlimReport(
        str(root), tuple(sms), before, before - saved, tuple(sorted(reports, key=lambda r: r.path))
    )


UNREMARKABLE = ("no ELF64 library", "no device code")


def regular_files(root: Path) -> dict[tuple[int, int], tuple[int, list[str]]]:
    """Per inode (device, number) below `root`: its size in bytes and its names, sorted."""
    found: dict[tuple[int, int], tuple[int, list[str]]] = {}
    folders = [os.fspath(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    inode = status.st_dev, status.st_ino
                    found.setdefault(inode, (status.st_size, []))[1].append(entry.path)
    for _, names in found.values():
        names.sort()
    return found


def _without_leftovers(
    inodes: dict[tuple[int, int], tuple[int, list[str]]],
) -> dict[tuple[int, int], tuple[int, list[str]]]:
    """Remove what a run that was killed left aside."""
    left = {inode: names for inode, (_, names) in inodes.items() if names[0].endswith(".slimming")}
    for names in left.values():
        for name in names:
            Path(name).unlink()
    return {inode: found for inode, found in inodes.items() if inode not in left}


def is_elf(name: str) -> bool:
    """Whether a file begins as an ELF file does."""
    with open(name, "rb") as file:  # noqa: PTH123 - thousands of them
        return file.read(4) == b"\x7fELF"


def _slimmed(
    work: Sequence[tuple[int, list[Path]]], slim: Callable[[Path], FileReport], jobs: int
) -> Iterator[tuple[int, list[Path], FileReport]]:
    """Each item of `work` with its report, as they become ready."""
    if jobs == 1 or len(work) < 2:
        for size, names in work:
            yield size, names, slim(names[0])
        return
    context = multiprocessing.get_context("forkserver")  # safe beside the threads of a progress display
    context.set_forkserver_preload(["__main__", "vllm_variants.fatbin.library"])
    with ProcessPoolExecutor(min(jobs, len(work)), context) as pool:
        futures = {pool.submit(slim, names[0]): (size, names) for size, names in work}
        try:
            for future in as_completed(futures):
                yield *futures[future], future.result()
        except BrokenProcessPool as error:
            raise ResourceError(
                "a process that slimmed was killed, most likely for want of memory",
                mend="vllm-variants doctor",
            ) from error
        except BaseException:
            # A person who stops this does not wait for a library of 500 MB: what is aside is swept.
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _slim(path: Path, devices: tuple[Capability, ...], keep_ptx: bool, resources: bool) -> FileReport:
    try:
        return slim_file(path, devices, keep_ptx=keep_ptx, resources=resources)
    except (Malformed, Wrong) as error:
        size = path.stat().st_size
        kind = "malformed" if isinstance(error, Malformed) else "not proven"
        return FileReport(str(path), size, size, kept=f"{kind}: {error.message}")


def _relink(new: Path, name: Path) -> None:
    """Make `name` another name of `new`, in one step."""
    aside = name.with_name(f".{name.name}.slimming")
    aside.unlink(missing_ok=True)
    os.link(new, aside)
    aside.replace(name)
