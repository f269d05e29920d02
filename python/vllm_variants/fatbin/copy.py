"""A slimmed copy of a tree: made aside and renamed, so that it is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from vllm_variants.errors import UsageError
from vllm_variants.fatbin.slim import SlimReport, regular_files


def slimmed_copy(
    root: Path, to: Path, slim: Callable[[Path], SlimReport], *, link: bool = False
) -> SlimReport:
    """Copy `root` to `to`, which must not exist, and `slim` the copy.

    Files are linked first, so that what is slimmed is never copied whole; what was not slimmed is
    then copied, or with `link` stays another name of the source's inode.
    """
    if to.exists():
        raise UsageError(f"{to} exists already", mend="choose another output, or remove it")
    aside = to.with_name(f".{to.name}.slimming")
    if aside.exists():
        shutil.rmtree(aside)
    try:
        _linked_tree(root, aside)
        report = slim(aside)
        if not link:
            _unlink_from(root, aside)
        aside.rename(to)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return report


def _linked_tree(root: Path, to: Path) -> None:
    def link(source: str, target: str) -> str:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # another file system, or one without links
            shutil.copy2(source, target, follow_symlinks=False)
        return target

    shutil.copytree(root, to, symlinks=True, copy_function=link)


def _unlink_from(root: Path, copy: Path) -> None:
    """Give the copy its own inodes, one for each that it shares with `root`."""
    shared = regular_files(root).keys()
    for inode, (_, names) in regular_files(copy).items():
        if inode not in shared:
            continue
        first = Path(names[0])
        own = first.with_name(f".{first.name}.slimming")
        shutil.copy2(first, own)
        own.replace(first)
        for other in names[1:]:
            Path(other).unlink()
            os.link(first, other)
