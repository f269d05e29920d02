"""The `./result-…` links: made by one rename, and never over something that is not a link."""

from __future__ import annotations

import stat
from pathlib import Path

from vllm_variants.errors import Error, ResourceError
from vllm_variants.system import atomic


def require_free(link: Path) -> None:
    """Raise an `Error` when what is at `link` is no link: it is somebody's, and stays.

    `ResourceError` where nobody may look, or the name cannot be one.
    """
    try:
        taken = not stat.S_ISLNK(link.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResourceError(f"the link {link} cannot be made: {error.strerror}") from error
    if taken:
        raise Error(f"{link} is in the way: it is not a link", hint=f"move it: mv {link} {link}.old")


def point(link: Path, target: Path) -> None:
    """Point `link` to `target` by one rename; `ResourceError` where the disk refuses."""
    require_free(link)
    try:
        atomic.symlink(link, target)
        atomic.remove_leftovers_of(
            link
        )  # a killed build's: two writers of one link do not disturb each other
    except OSError as error:
        raise ResourceError(f"the link {link} cannot be made: {error.strerror}") from error
