"""What the store asks of the disk: sizes, bytes that are there after a power cut, and removal."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from itertools import chain
from pathlib import Path

from vllm_variants.system import atomic

_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""What a file system says that has no such call (some of FUSE, some network ones)."""


def disk_use(*trees: Path) -> tuple[int, int]:
    """Apparent bytes of the files of trees, and the bytes on disk that only these trees hold.

    A file counts once, whatever names it has. One with more hard links than the trees have of it is shared
    (with uv's cache) and stays.
    """
    inodes: dict[tuple[int, int], list[int]] = {}  # → size, bytes on disk, names outside the tree
    for folder, _, names in chain.from_iterable(map(os.walk, trees)):
        for name in names:
            try:
                stat = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (100,000 files: no Path each)
            except FileNotFoundError:  # gone since it was listed
                continue
            inode = inodes.setdefault(
                (stat.st_dev, stat.st_ino), [stat.st_size, stat.st_blocks * 512, stat.st_nlink]
            )
            inode[2] -= 1
    return sum(size for size, _, _ in inodes.values()), sum(
        on_disk for _, on_disk, names_outside in inodes.values() if names_outside == 0
    )


def delete(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a tree, or a file or link; what somebody else removes meanwhile is no error.

    Raises `OSError` for what cannot be removed, unless `ignore_errors` leaves it.
    """
    while os.path.lexists(path):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:  # of something inside: the rest is still there
            continue
        except OSError:
            if not ignore_errors:
                raise
            shutil.rmtree(path, ignore_errors=True)
            return


def sync_file_system(tree: Path) -> None:
    """Bring all of the tree's bytes to the disk with one call (a result has tens of thousands of files).

    Raises `OSError` where the disk refuses them.
    """
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:  # no Linux
            os.sync()
        elif syncfs(descriptor) and (code := ctypes.get_errno()) not in _NO_SYNC:
            raise OSError(code, os.strerror(code), str(tree))
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where its file system can; raise `OSError` where it refuses."""
    try:
        atomic.sync_folder(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
