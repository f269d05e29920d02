"""What must hold after any fault: pure comparisons of folders as they were and as they are.

Each function returns sentences, one for each invariant that is broken; none means that all held.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from commands import Ended

from vllm_variants.errors import ExitCode

OURS = re.compile(r"\..+\.(slimming|[0-9a-f]{12}\.vllm-variants-new)|\.result-.+\.\d+", re.DOTALL)
"""Names that a run may leave when it is killed without notice, until the next run sweeps them."""


@dataclass(frozen=True)
class Item:
    """A file, link or folder: its kind, what it holds (a digest, or a link's target), its mode, its inode."""

    kind: str
    holds: str
    mode: int
    inode: int = 0

    def same(self, other: Item) -> bool:
        """Whether kind, content and mode are equal."""
        return (self.kind, self.holds, self.mode) == (other.kind, other.holds, other.mode)


Snapshot = Mapping[str, Item]


def snapshot(root: Path) -> dict[str, Item]:
    """Everything below `root`, by its path from there."""
    found: dict[str, Item] = {}
    folders = [os.fsencode(root)]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                mode = stat.S_IMODE(status.st_mode)
                name = os.fsdecode(os.path.relpath(entry.path, os.fsencode(root)))
                if entry.is_symlink():
                    found[name] = Item("link", str(Path(os.fsdecode(entry.path)).readlink()), 0)
                elif stat.S_ISDIR(status.st_mode):
                    found[name] = Item("folder", "", mode)
                    folders.append(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    found[name] = Item("file", _digest(entry.path, status.st_size), mode, status.st_ino)
                else:
                    found[name] = Item(f"{stat.S_IFMT(status.st_mode):o}", "", mode)
    return found


def _digest(path: bytes, size: int) -> str:
    if size > 1 << 28:
        return f"{size} bytes"  # sparse giants among the odd files
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (bytes, for names that are no text)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        return "unreadable"


def ended_well(ended: Ended, succeeds: bool = False) -> list[str]:
    """It ended, in a documented way, without a traceback, and left no process."""
    broken = []
    if ended.hung:
        broken.append("it did not end")
    elif succeeds and ended.status != 0:
        last = ended.err.strip().splitlines()[-2:]
        broken.append(f"it ended in {ended.status}, not in 0: {' / '.join(last)}")
    elif ended.status not in {*map(int, ExitCode), *(-signum for signum in ended.sent)}:
        broken.append(f"exit status {ended.status} is not documented")
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        broken.append(f"a traceback: {ended.err.strip().splitlines()[-1][:200]}")
    silent = ended.status == ExitCode.INTERRUPTED and ended.sent  # stopped before anything began
    if ended.status and ended.status > 0 and not (ended.err + ended.out).strip() and not silent:
        broken.append(f"it ended in {ended.status} without a word")
    broken += [f"a process was left over: {process}" for process in ended.left]
    return broken


def old_or_new(
    before: Snapshot, after: Snapshot, reference: Snapshot, *, leftovers: bool, finished: bool = False
) -> list[str]:
    """Every file is as it was or, where `reference` differs, as it becomes; nothing else changed.

    `leftovers`: new files under names of ours are allowed (after SIGKILL). `finished`: all is new.
    """
    broken = []
    for name, old in before.items():
        now, new = after.get(name), reference.get(name, old)
        if now is None:
            broken.append(f"{name} is gone")
        elif finished and not now.same(new):
            broken.append(f"{name} is not as a finished run leaves it{_difference(new, now)}")
        elif not (now.same(old) or now.same(new)):
            broken.append(f"{name} is neither old nor new{_difference(old, now)}")
    left = [
        f"{name} was left there"
        for name in sorted(after.keys() - before.keys())
        if not (leftovers and any(OURS.fullmatch(part) for part in Path(name).parts))
    ]
    return broken + left


def _difference(expected: Item, now: Item) -> str:
    if expected.kind != now.kind:
        return f": a {now.kind}, not a {expected.kind}"
    return f": mode {now.mode:o}, not {expected.mode:o}" if expected.holds == now.holds else ""


def equal(before: Snapshot, after: Snapshot, what: str, apart_from: Collection[str] = ()) -> list[str]:
    """Nothing changed: nothing gone, nothing new, everything the same."""
    broken = []
    for name in sorted(before.keys() | after.keys()):
        old, now = before.get(name), after.get(name)
        if name in apart_from or (old and now and now.same(old)):
            continue
        state = "is gone" if now is None else "is new" if old is None else f"changed{_difference(old, now)}"
        broken.append(f"{what}: {name} {state}")
    return broken


def one_inode(after: Snapshot, groups: Iterable[Collection[str]]) -> list[str]:
    """The names of one file are still names of one file (after a finished run)."""
    return [
        f"{' and '.join(sorted(group))} are not one file any more"
        for group in groups
        if len({after[name].inode for name in group if name in after}) > 1
    ]


def entry_whole(entry: Path, reference: Snapshot, volatile: Collection[str]) -> list[str]:
    """A store entry is whole: its manifest readable, its Python executable, every file as it must be."""
    broken = []
    manifest = entry / "share" / "vllm-variants" / "manifest.json"
    try:
        if json.loads(manifest.read_text())["schema"] != 1:
            broken.append("its manifest has another schema")
    except (OSError, ValueError, KeyError, TypeError) as error:
        broken.append(f"its manifest is not readable: {error}")
    if not os.access(entry / "bin" / "python", os.X_OK):
        broken.append("its bin/python is not executable")
    broken += equal(reference, snapshot(entry), "a file of it", apart_from=volatile)
    return [f"entry {entry.name}: {sentence}" for sentence in broken]
