"""The folders of this user that the XDG Base Directory Specification names, and the room on a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vllm_variants.errors import MissingError

_OURS = "vllm-variants"


# These raise `MissingError` where neither the variable nor the user's home is known.


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
    return (named if named.is_absolute() else _home(variable) / default) / _OURS


def _home(variable: str) -> Path:
    """This user's home; `MissingError` where nobody knows one, or where it would move with each `cd`."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (leaves ~ where there is none, as of a container's user)
    if not home.is_absolute():
        raise MissingError(
            f"this user has no home folder: HOME is {os.environ.get('HOME') or 'not set'}",
            hint=f"set HOME, or {variable}, to the absolute path of a folder",
        )
    return home


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk that holds `folder`, or will when it is made; `OSError` when it cannot be."""
    while True:
        try:
            return shutil.disk_usage(folder).free
        except (FileNotFoundError, NotADirectoryError):
            if folder == folder.parent:
                raise
            folder = folder.parent
