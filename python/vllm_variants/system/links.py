"""The `./result-…` links: made by one rename, and never over something that is not a link."""

from __future__ import annotations

import stat
from pathlib import Path

from vllm_variants.errors import Error, ResourceError
from vllm_variants.system import atomic


def require_free(link: Path) -> None:
    """Return if nothing or a link is at `link`; raise an `Error` for anything else, which is not ours.

    Raises `ResourceError` where the path cannot be looked at.
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
        atomic.remove_leftovers_of(link)  # of a killed build; a build that still runs makes its link again
    except OSError as error:
        raise ResourceError(f"the link {link} cannot be made: {error.strerror}") from error
