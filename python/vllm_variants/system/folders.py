"""The folders of this user that the XDG Base Directory Specification names, and the room on a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_OURS = "vllm-variants"


def data() -> Path:
    """Where results are kept: `$XDG_DATA_HOME/vllm-variants`, `~/.local/share/…` without it."""
    return _folder("XDG_DATA_HOME", ".local/share")


def state() -> Path:
    """Where logs and build times are kept: `$XDG_STATE_HOME/vllm-variants`, `~/.local/state/…`."""
    return _folder("XDG_STATE_HOME", ".local/state")


def cache() -> Path:
    """Where what can be made again is kept: `$XDG_CACHE_HOME/vllm-variants`, `~/.cache/…`."""
    return _folder("XDG_CACHE_HOME", ".cache")


def _folder(variable: str, default: str) -> Path:
    named = Path(os.environ.get(variable, ""))  # the specification says to ignore a relative path
    return (named if named.is_absolute() else Path.home() / default) / _OURS


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds `folder`, or will when it is made; `OSError` when it cannot be."""
    while True:
        try:
            return shutil.disk_usage(folder).free
        except (FileNotFoundError, NotADirectoryError):
            if folder == folder.parent:
                raise
            folder = folder.parent
