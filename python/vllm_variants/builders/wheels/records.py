"""RECORD files that say what is there: after files of a tree changed or went, their rows do too.

Each distribution's RECORD (the packaging guide's "Recording installed projects") has one CSV row per
file: its path, its hash and its size in bytes. Only RECORDs with a row that changes are written anew,
and beside the old one, which may be another name of a package cache's file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import stat
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vllm_variants.errors import InputError
from vllm_variants.system import atomic


class _Hash(Protocol):
    def digest(self) -> bytes: ...


@dataclass(frozen=True)
class RecordReport:
    """What became of the RECORDs of one site-packages folder.

    `written` are those that changed; `rows` counts rows with a new hash or size, `removed` rows of files
    that were dropped. `missing` are files that a RECORD lists, that are not there, and that were not
    dropped: their rows stay.
    """

    written: tuple[str, ...]
    rows: int
    removed: int
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as the manifest holds it."""
        return {
            "written": len(self.written),
            "rows": self.rows,
            "removed": self.removed,
            "missing": list(self.missing),
        }


def digest(path: Path) -> tuple[str, int]:
    """A file's hash, as RECORD writes it, and its size in bytes. A link's are its target's."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
        return encoded(found), os.fstat(file.fileno()).st_size


def encoded(found: _Hash) -> str:
    """A SHA-256 as RECORD writes it: `sha256=`, then URL-safe base64 without padding."""
    return "sha256=" + urlsafe_b64encode(found.digest()).rstrip(b"=").decode("ascii")


def refresh(
    site: Path, changed: Collection[str] = (), dropped: Collection[str] = (), *, jobs: int | None = None
) -> RecordReport:
    """Make the RECORDs in `site` (site-packages) say what is there.

    `changed` and `dropped` are paths relative to `site`; a file whose size is not its row's counts as
    changed too. Reads what changed, on `jobs` cores (default: all). The same tree gives the same bytes.
    Raises `InputError` for a RECORD that cannot be read.
    """
    changed, dropped = _normal(changed), _normal(dropped)
    tables = {record: _read(record) for record in sorted(site.glob("*.dist-info/RECORD"))}
    missing: set[str] = set()
    stale: set[str] = set()
    for rows in tables.values():
        for row in rows:
            path = os.path.normpath(row[0])
            if len(row) < 3 or path in dropped or not (row[1] or row[2]):
                continue  # a RECORD's own row has no hash, nor has bytecode's
            size = _size(site, path)
            if size is None:
                missing.add(path)
            elif path in changed or row[2] != str(size):
                stale.add(path)
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        order = sorted(stale)
        found = dict(zip(order, pool.map(lambda path: digest(site / path), order), strict=True))
    written, updated, removed = [], 0, 0
    for record, rows in tables.items():
        kept = [row for row in rows if os.path.normpath(row[0]) not in dropped]
        fresh = [_row(row, found) for row in kept]
        if fresh != rows:
            _write(record, fresh)
            written.append(str(record.relative_to(site)))
            removed += len(rows) - len(kept)
            updated += sum(1 for old, new in zip(kept, fresh, strict=True) if old != new)
    return RecordReport(tuple(written), updated, removed, tuple(sorted(missing)))


def _normal(paths: Iterable[str]) -> set[str]:
    return {os.path.normpath(path) for path in paths}


def _size(site: Path, path: str) -> int | None:
    try:
        status = os.stat(os.path.join(site, path))  # noqa: PTH116, PTH118 - tens of thousands of them
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _row(row: list[str], found: dict[str, tuple[str, int]]) -> list[str]:
    new = found.get(os.path.normpath(row[0]))
    return [row[0], new[0], str(new[1]), *row[3:]] if new and (row[1] or row[2]) else row


def _read(record: Path) -> list[list[str]]:
    try:
        with record.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{record}: cannot be read as a RECORD: {error}") from error


def _write(record: Path, rows: Iterable[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic.new_file(record) as new:
        with os.fdopen(os.dup(new.descriptor), "wb") as file:
            file.write(text.getvalue().encode("utf-8"))
        os.fchmod(new.descriptor, stat.S_IMODE(record.stat().st_mode))
        new.publish(durable=False)
