"""A slimmed copy of a tree: made aside and renamed, so that it is there whole or not at all.

What is not finished lies beside the output in a folder of ours, `.NAME.RANDOM.vllm-variants-new`,
with a file in it that its writer holds locked. So what a killed writer left is known for sure, and
nothing else is ever removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from vllm_variants.errors import Error, InputError, MissingError, UsageError
from vllm_variants.fatbin.tree import SlimReport, regular_files
from vllm_variants.fatbin.writing import Unwritable, copy_file
from vllm_variants.system import atomic

_WRITER = ".vllm-variants-writer"
"""The file in an unfinished copy that its writer holds locked."""


def slimmed_copy(
    root: Path, to: Path, slim: Callable[[Path], SlimReport], *, link: bool = False
) -> SlimReport:
    """Copy `root` to `to`, which must not exist, and `slim` the copy.

    Files are linked first, so that what is slimmed is never copied whole; what was not slimmed is
    then copied, or with `link` stays another name of the source's inode. Raises `UsageError` for an
    output that exists or lies in `root`, `MissingError` where its folder is absent, `InputError` for
    what cannot be read and `Unwritable` for what cannot be written; nothing is left then.
    """
    refuse_output(to)
    if to.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{to} lies in {root} itself", hint="choose an output outside it")
    _remove_leftovers(to)
    try:
        with _aside(to) as aside:
            folders = _linked_tree(root, aside)
            report = slim(aside)
            if not link:
                _unlink_from(root, aside)
            for source, folder in reversed(folders):
                shutil.copystat(source, folder)
            (aside / _WRITER).unlink()
            _publish(aside, to)
            with suppress(OSError):  # not earlier: it may take the right to rename away
                shutil.copystat(root, to)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Unwritable(f"{to} cannot be made: {error.strerror or error}{where}") from error
    files = (replace(file, kept=file.kept.replace(str(aside), str(to))) for file in report.files)
    return replace(report, root=str(to), files=tuple(files))


def refuse_output(to: Path) -> None:
    """Raise an `Error` unless something new can be made at `to`: its folder is there, and it is not."""
    try:
        to.lstat()
    except FileNotFoundError:
        if not to.parent.is_dir():
            raise MissingError(f"{to.parent} does not exist", hint=f"mkdir -p {to.parent}") from None
        return
    except OSError as error:
        raise UsageError(f"{to} cannot be an output: {error.strerror}") from error
    raise UsageError(f"{to} exists already", hint="choose another output, or remove it")


@contextmanager
def _aside(to: Path) -> Iterator[Path]:
    """A new, locked folder beside `to`; gone afterwards unless it was renamed."""
    aside = atomic.name_beside(to)
    try:
        with _locked(aside):
            yield aside
    finally:
        _remove_tree(aside)


@contextmanager
def _locked(aside: Path) -> Iterator[None]:
    """Make the folder and hold its lock; again where it was swept before there was one to hold."""
    for last in (False, False, True):
        aside.mkdir(0o700)
        try:
            writer = (aside / _WRITER).open("xb")
            break
        except FileNotFoundError:
            if last:
                raise
    with writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _publish(aside: Path, to: Path) -> None:
    if os.path.lexists(to):
        raise UsageError(f"{to} exists already", hint="choose another output, or remove it")
    aside.rename(to)


def _remove_leftovers(to: Path) -> None:
    """Remove what killed copies to `to` left: folders of our name that are empty, or whose lock is free."""
    with suppress(OSError):
        for path in list(to.parent.iterdir()):
            if atomic.is_leftover_of(path, to) and not path.is_symlink():
                with suppress(OSError):
                    path.rmdir()  # killed before there was a lock; does nothing to one with files
                with suppress(OSError), (path / _WRITER).open("rb") as writer:
                    fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove_but_last(path, _WRITER)


def _remove_but_last(folder: Path, last: str) -> None:
    """Remove a folder of ours, the file `last` after all else: while something is left, it marks it as ours.

    A killed writer's workers may write for a moment longer, so a folder may not be empty yet.
    """
    _make_writable(folder)
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != last:
            child.unlink(missing_ok=True)
    if [child.name for child in folder.iterdir()] == [last]:
        _remove_tree(folder)


def _make_writable(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        with suppress(OSError):
            Path(path).chmod(0o700)


def _remove_tree(folder: Path) -> None:
    """Remove a folder of ours, also where folders in it are not writable; what cannot be removed stays."""
    _make_writable(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _linked_tree(root: Path, to: Path) -> list[tuple[Path, Path]]:
    """Link everything in `root` into the folder `to`; the folders made in it, with their sources.

    They are writable to us until the caller gives them their own modes.
    """
    made: list[tuple[Path, Path]] = []
    left = [(root, to)]
    while left:
        source, folder = left.pop()
        for entry in _entries(source):
            target = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                target.mkdir(0o700)
                made.append((Path(entry.path), target))
                left.append(made[-1])
            else:
                _link(Path(entry.path), target)
    return made


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _link(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, or a copy where it cannot be: on another file system."""
    with suppress(OSError):
        os.link(source, target, follow_symlinks=False)
        return
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(source.readlink())
        shutil.copystat(source, target, follow_symlinks=False)
    elif stat.S_ISREG(status.st_mode):
        copy_file(source, target, durable=False)
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
