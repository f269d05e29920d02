"""Write a new file from pieces of an old one, with its mode, owner and times."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from vllm_variants.errors import InputError
from vllm_variants.fatbin.rewrite import Copy, Literal

_BLOCK = 1 << 16
"""Bytes; shorter ranges are read and written."""


def write_pieces(source: int, pieces: Iterable[Copy | Literal], target: int, size: int) -> None:
    """Write `pieces` of the file `source` to the empty file `target`, which gets `size` bytes.

    Both are descriptors. Between the pieces it is zero. Raises `InputError` where the source became
    shorter, and `OSError`.
    """
    os.truncate(target, size)
    for piece in pieces:
        if isinstance(piece, Copy):
            _copy(source, piece.offset, target, piece.to, piece.length)
        else:
            os.pwrite(target, piece.data, piece.to)


def same_metadata(source: int, target: int) -> None:
    """Give `target` the mode of `source`, its owner where permitted, and its times to the nanosecond."""
    status = os.fstat(source)
    with suppress(PermissionError):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy(source: int, offset: int, target: int, to: int, length: int) -> None:
    while length > 0:
        done = _copy_some(source, offset, target, to, length)
        if not done:
            raise InputError(f"the file became shorter while it was read, at offset {offset:#x}")
        offset, to, length = offset + done, to + done, length - done


def _copy_some(source: int, offset: int, target: int, to: int, length: int) -> int:
    """Copy up to `length` bytes, inside the kernel where that is possible; returns how many."""
    if length >= _BLOCK:
        with suppress(OSError):  # not between these file systems, or not on this kernel
            if done := os.copy_file_range(source, target, length, offset, to):
                return done
    return os.pwrite(target, os.pread(source, min(length, _BLOCK), offset), to)
