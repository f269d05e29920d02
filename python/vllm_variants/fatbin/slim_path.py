"""Slim what a path leads to: a library, or every library of a directory, in place or as a copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.errors import InputError, MissingError
from vllm_variants.fatbin.copy import slimmed_copy
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.native.library import Native, compile_tree
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.tree import UNREMARKABLE, Progress, SlimReport, slim_tree
from vllm_variants.fatbin.writing import copy_file
from vllm_variants.model.capability import Capability
from vllm_variants.system import atomic, new_folder


def slim_path(
    path: Path,
    devices: Sequence[Capability],
    rules: Rules,
    *,
    to: Path | None = None,
    native: Native | None = None,
    link: bool = False,
    jobs: int | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total, name: None,
) -> SlimReport:
    """Slim a library or a directory for `devices`, in place, or `to` a path that must not exist.

    A library goes `to` a directory under its own name. `native`, `jobs`, `dry_run` and `progress` are those
    of `slim_tree`, `link` that of `slimmed_copy`. Raises what these raise, `MissingError` where nothing is at
    `path`, and `InputError` for what cannot be read or is no library.
    """
    if not _is_folder(path):
        return _slim_file(path, to, devices, rules, native, dry_run)

    def slimmed(root: Path) -> SlimReport:
        return slim_tree(
            root,
            devices,
            rules,
            native=native,
            progress=progress,
            jobs=jobs,
            durable=to is None,
            dry_run=dry_run,
        )

    return slimmed_copy(path, to, slimmed, link=link) if to else slimmed(path)


def _is_folder(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return path.is_dir()


def _slim_file(
    path: Path,
    to: Path | None,
    devices: Sequence[Capability],
    rules: Rules,
    native: Native | None,
    dry_run: bool,
) -> SlimReport:
    path = path.resolve()  # a symbolic link stays one
    if to:
        to = to / path.name if os.path.isdir(to) else to  # noqa: PTH112 - any name may come
        new_folder.refuse_existing(to)
    if not dry_run:
        atomic.remove_leftovers_of(to or path)
    compiled = compile_tree([path], path.parent, devices, rules, native) if native else {}
    report = slim_file(
        path,
        devices,
        rules,
        compiled=compiled[path].containers if path in compiled else {},
        to=to,
        durable=to is None,
        dry_run=dry_run,
    )
    if report.kept in UNREMARKABLE or report.kept.startswith("an object"):
        raise InputError(f"{path} cannot be slimmed: {report.kept}")
    if to and not report.changed:
        copy_file(path, to, durable=False)
    libraries = tuple(compiled.values())
    return SlimReport(str(path), tuple(devices), report.before, report.after, (report,), libraries)
