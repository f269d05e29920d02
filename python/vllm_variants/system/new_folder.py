"""Folders that appear whole or not at all: made aside, then renamed.

What is not finished lies beside its target in a folder of ours, `.NAME.RANDOM.vllm-variants-new`,
with a file in it that its writer holds locked. So what a killed writer left is known for sure, and
nothing else is ever removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_variants.errors import MissingError, UsageError
from vllm_variants.system import atomic, interruption

_WRITER = ".vllm-variants-writer"
"""The file in an unfinished folder that its writer holds locked."""


def refuse_existing(to: Path) -> None:
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
def aside(to: Path) -> Iterator[Path]:
    """A new, locked folder beside `to`; gone afterwards unless it was renamed."""
    folder = atomic.name_beside(to)
    try:
        with _locked(folder):
            yield folder
    finally:
        with interruption.held():  # impatience would leave the rest of it
            _remove_tree(folder)


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


def publish(folder: Path, to: Path) -> None:
    """Give a finished folder of `aside` its name, by one rename; `UsageError` where something has it."""
    exists = UsageError(f"{to} exists already", hint="choose another output, or remove it")
    (folder / _WRITER).unlink()
    if os.path.lexists(to):
        raise exists
    try:
        folder.rename(to)
    except OSError as error:  # somebody made it since then
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise exists from error
        raise


def remove_leftovers(to: Path, *, only_own: bool = False) -> None:
    """Remove what killed writers of `to` left: folders of our name that are empty, or whose lock is free.

    With `only_own` those of this user alone, as it must be where anybody may make folders (`/tmp`).
    """
    with suppress(OSError):
        for path in list(to.parent.iterdir()):
            if only_own and path.lstat().st_uid != os.geteuid():
                continue
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
