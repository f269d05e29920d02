"""The links that keep entries: a `./result-…` link somewhere is remembered by a link to it in links/."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from vllm_variants.errors import ResourceError
from vllm_variants.store import disk, locks
from vllm_variants.store.folders import StoreFolders
from vllm_variants.system import atomic
from vllm_variants.system import links as result_links

_LOCK = "links"  # the lock's name; no entry is called so


def make(folders: StoreFolders, link: Path, target: Path) -> None:
    """Remember `link` for gc, then point it to `target` by one rename; `Error` where it cannot be made."""
    link = link.absolute()
    result_links.require_free(link)
    folder = folders.made("links")
    record = folder / hashlib.sha256(os.fsencode(link)).hexdigest()[:24]
    with locks.hold(folders.lock(_LOCK)):
        try:
            atomic.symlink(record, link)
            disk.sync_folder(folder)
        except OSError as error:
            raise ResourceError(
                f"the link {link} cannot be remembered for gc, and was not made: {error.strerror} ({folder})",
                hint="make room, or set XDG_DATA_HOME to a folder that you can write to",
            ) from error
        result_links.point(link, target)


def by_target(folders: StoreFolders, *, certain: bool = True) -> dict[Path, list[Path]]:
    """The remembered links by the path that they lead to, whether or not something is there.

    Raises `ResourceError` for a link that cannot be looked at; it is left out unless `certain`.
    """
    links: dict[Path, list[Path]] = {}
    for record in folders.remembered_links():
        link = _remembered(record)
        try:
            if link and _is_link(link, record):
                links.setdefault(resolved(link), []).append(link)
        except ResourceError:
            if certain:
                raise
    return links


def forget_gone(folders: StoreFolders) -> None:
    """Forget the links that are gone; a link that is just being made is not: its maker has the lock."""
    if not folders.remembered_links():
        return
    with locks.hold(folders.lock(_LOCK)):
        for record in folders.remembered_links():
            link = _remembered(record)
            if link and not _is_link(link, record):
                with suppress(OSError):
                    record.unlink()
    for path in folders.unfinished_links():
        with suppress(OSError):
            atomic.remove_leftover(path)


def resolved(path: Path) -> Path:
    """Where a path leads, as far as it does; a loop of links leads to itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        return path


def _remembered(record: Path) -> Path | None:
    """The link that is remembered; None when it was forgotten meanwhile, or is no record of ours."""
    try:
        return record.readlink()
    except OSError:
        return None


def _is_link(link: Path, record: Path) -> bool:
    try:
        return link.is_symlink()
    except OSError as error:
        raise ResourceError(
            f"the link {link} cannot be looked at, and may keep a result: {error.strerror}",
            hint=f"run it as one who may look there, or forget the link: rm {record}",
        ) from error
