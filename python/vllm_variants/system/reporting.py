"""Write the reports of builds and of checks, whole or not at all, to wherever a person named.

Needs the standard library alone: `python -m vllm_variants.verify` runs where nothing is installed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vllm_variants.errors import resource_error
from vllm_variants.system import atomic


def write(path: Path, text: str) -> None:
    """Write a report whole or not at all; `ResourceError` where the disk refuses.

    Through a link, to what it leads to; a device or a pipe gets the text as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_stream(path):
            path.write_text(text, encoding="utf-8")
        else:
            atomic.write(path.resolve(), text)
    except OSError as error:
        raise resource_error(error) from error
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise resource_error(OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))) from error


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
