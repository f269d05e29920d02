"""Small disks: tmpfs in mounts of this process's own, which end with it. Linux, root or user namespaces."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_NEWNS, _NEWUSER = 0x20000, 0x10000000
_REMOUNT, _READ_ONLY, _PRIVATE = 32, 1, 1 << 18 | 1 << 14
_libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> str:
    """Give this process mounts of its own (call it before any thread starts); why not, or empty."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_NEWNS if uid == 0 else _NEWNS | _NEWUSER):
        return f"mounts of one's own are not allowed here: {os.strerror(ctypes.get_errno())}"
    try:
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        _mount("none", "/", None, _PRIVATE, None)
    except OSError as error:
        return f"mounts of one's own are not allowed here: {error.strerror}"
    return ""


def mount_tmpfs(folder: Path, options: str) -> None:
    """Mount a tmpfs at `folder`, or change the one there when `options` begin with `remount`."""
    flags, words = 0, options.split(",")
    if "remount" in words:
        flags |= _REMOUNT
    rest = ",".join(word for word in words if word not in ("remount", "rw"))
    _mount("tmpfs", str(folder), "tmpfs", flags, rest or None)


def remount_read_only(folder: Path) -> None:
    """Make the tmpfs at `folder` read-only."""
    _mount("tmpfs", str(folder), "tmpfs", _REMOUNT | _READ_ONLY, None)


def unmount(folder: Path) -> None:
    """Take the tmpfs at `folder` away with all that is in it, at once or when its last user ends."""
    with suppress(OSError):
        if _libc.umount2(os.fsencode(folder), 2):
            raise OSError(ctypes.get_errno(), "umount")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    words = [word.encode() if word else None for word in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
