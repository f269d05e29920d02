"""The form `folder`: a tree on disk that runs anywhere, for anybody who can read it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.errors import resource_error
from vllm_variants.export import checked, destinations, portable, tree, workspace
from vllm_variants.export.destinations import Destination
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.report import Exported
from vllm_variants.export.tree import Entry, File, Link
from vllm_variants.model.results import Result
from vllm_variants.store import disk
from vllm_variants.system import new_folder
from vllm_variants.system.progress import Advance

_PYTHON = 150_000_000
"""Bytes that Python takes at most."""
_BUFFER = 1 << 20


def export(results: Sequence[Result], destination: Destination, options: Options, talk: Talk) -> Exported:
    """Make the folder; everything in it is readable for all, and nothing is a link out of it.

    Raises `UnsupportedError` for a result of another platform, `ResourceError` where the disk refuses.
    """
    (result,) = results
    destinations.require_room(destination, disk.disk_use(result.path)[0] + _PYTHON)
    try:
        with workspace.opened() as work:
            (made,) = portable.prepared(results, destination.form, options, talk, work)
            with new_folder.aside(destination.path) as folder:
                write(made.tree.entries, folder, talk.advance)
                folder.chmod(0o755)
                disk.sync_file_system(folder)
                new_folder.publish(folder, destination.path)
    except OSError as error:
        raise resource_error(error) from error
    return Exported(destination, (result,), made.tree.size, {"python": made.runtime.as_dict()})


def write(entries: Sequence[Entry], folder: Path, advance: Advance) -> None:
    """Write entries into `folder`. Raises `DamagedError` for a file that is not what it was, `OSError`."""
    for name in tree.folders_of(entries):
        (folder / name).mkdir()
        (folder / name).chmod(0o755)
    total, done = sum(entry.size for entry in entries), 0
    for entry in entries:
        path = folder / entry.path
        if isinstance(entry, Link):
            path.symlink_to(entry.target)
            continue
        if isinstance(entry, File):
            with (
                checked.reading(entry.source, entry.size, entry.recorded) as source,
                path.open("wb") as target,
            ):
                shutil.copyfileobj(source, target, _BUFFER)
        else:
            path.write_bytes(entry.data)
        os.chmod(path, 0o755 if entry.executable else 0o644)  # noqa: PTH101 (50,000 files)
        done += entry.size
        advance(done, total)
