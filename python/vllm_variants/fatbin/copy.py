"""A slimmed copy of a tree: made aside and renamed, so that it is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vllm_variants.errors import Error, InputError, UsageError
from vllm_variants.fatbin.tree import SlimReport, regular_files
from vllm_variants.fatbin.writing import Unwritable, copy_file
from vllm_variants.system import atomic, new_folder


def slimmed_copy(
    root: Path, to: Path, slim: Callable[[Path], SlimReport], *, link: bool = False
) -> SlimReport:
    """Copy `root` to `to`, which must not exist, and `slim` the copy.

    Files are linked first, so that what is slimmed is never copied whole; what was not slimmed is
    then copied, or with `link` stays another name of the source's inode. Raises `UsageError` for an
    output that exists or lies in `root`, `MissingError` where its folder is absent, `InputError` for
    what cannot be read and `Unwritable` for what cannot be written; nothing is left then.
    """
    new_folder.refuse_existing(to)
    if to.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{to} lies in {root} itself", hint="choose an output outside it")
    new_folder.remove_leftovers(to)
    try:
        with new_folder.aside(to) as aside:
            folders = _linked_tree(root, aside)
            report = slim(aside)
            if not link:
                _unlink_from(root, aside)
            for source, folder in reversed(folders):
                shutil.copystat(source, folder)
            new_folder.publish(aside, to)
            with suppress(OSError):  # not earlier: it may take the right to rename away
                shutil.copystat(root, to)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Unwritable(f"{to} cannot be made: {error.strerror or error}{where}") from error
    files = (replace(file, kept=file.kept.replace(str(aside), str(to))) for file in report.files)
    return replace(report, root=str(to), files=tuple(files))


def _linked_tree(root: Path, to: Path) -> list[tuple[Path, Path]]:
    """Link everything in `root` into the folder `to`; the folders made in it, with their sources.

    They are writable to us until the caller gives them their own modes. What other runs have aside, or left
    there when they were killed, is no part of `root`.
    """
    made: list[tuple[Path, Path]] = []
    copies: dict[tuple[int, int], Path] = {}
    left = [(root, to)]
    while left:
        source, folder = left.pop()
        for entry in _entries(source):
            if atomic.is_leftover_name(entry.name):
                continue
            target = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                target.mkdir(0o700)
                made.append((Path(entry.path), target))
                left.append(made[-1])
            else:
                _link(Path(entry.path), target, copies)
    return made


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _link(source: Path, target: Path, copies: dict[tuple[int, int], Path]) -> None:
    """Make `target` another name of `source`, or a copy where it cannot be: on another file system.

    `copies` by the inode (device, number) of what was copied: names of one file become names of one copy.
    """
    with suppress(OSError):
        os.link(source, target, follow_symlinks=False)
        return
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(source.readlink())
        shutil.copystat(source, target, follow_symlinks=False)
    elif stat.S_ISREG(status.st_mode):
        inode = status.st_dev, status.st_ino
        with suppress(KeyError, OSError):
            os.link(copies[inode], target)
            return
        copy_file(source, target, durable=False)
        copies[inode] = target
    else:
        raise InputError(f"{source} is no file, folder or link, and cannot be copied to another file system")


def _unreadable(path: Path, error: OSError) -> Error:
    return InputError(
        f"{path} cannot be read: {error.strerror}",
        hint="a copy is made whole or not at all: make it readable",
    )


def _unlink_from(root: Path, copy: Path) -> None:
    """Give the copy its own inodes, one for each that it shares with `root`."""
    shared = regular_files(root).keys()
    for inode, (_, names) in regular_files(copy).items():
        if inode not in shared:
            continue
        first, *others = (Path(name) for name in names)
        copy_file(first, durable=False)
        for other in others:
            atomic.hard_link(other, first)
