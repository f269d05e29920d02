"""The `./result-…` links: made by one rename, and never over something that is not a link."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vllm_variants.errors import Error, ResourceError


def require_free(link: Path) -> None:
    """Raise an `Error` when what is at `link` is no link: it is somebody's, and stays."""
    if link.exists() and not link.is_symlink():
        raise Error(f"{link} is in the way: it is not a link", mend=f"move it: mv {link} {link}.old")


def point(link: Path, target: Path) -> None:
    """Point `link` to `target` by one rename; `ResourceError` where the disk refuses."""
    require_free(link)
    aside = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        aside.symlink_to(target)
        aside.rename(link)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        raise ResourceError(f"the link {link} cannot be made: {error.strerror}") from error
