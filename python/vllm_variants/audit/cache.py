"""What was read of files that are still the same, so that an audit of an installed tree takes a second.

One file for each audited tree, in the cache folder. A file counts as the same while its path, inode,
size, time of change and time of status change (in nanoseconds) are: the last cannot be set by programs, and
every write, `touch` and rename over it moves it. Its device is left out, since each container mounts its
layers as another one. What changed within `_SETTLING` seconds of being read is not kept, since a clock has
ticks. Everything kept is of exactly this code: its digest is in the name of the cache's file.

Nothing is decided from what is kept: it is what was read, and the audit judges it anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.system import folders

_SETTLING = 2.0
_PACKAGE = Path(__file__).parents[1]


class Cache:
    """What is known of the files below `root`; `fresh`: nothing of what was kept before is used."""

    def __init__(self, root: Path, fresh: bool = False) -> None:
        name = hashlib.sha256(f"{os.path.realpath(root)}\n{code_digest()}".encode()).hexdigest()[:32]
        self.file = folders.cache() / "audits" / f"{name}.json"
        self._known: dict[str, Any] = {} if fresh else _loaded(self.file)
        self._seen: dict[str, Any] = {}

    @staticmethod
    def key(path: str, status: os.stat_result) -> str:
        """What must be the same: the file, and the path that its features are told by."""
        facts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return f"{':'.join(map(str, facts))} {path}"

    def get(self, key: str) -> list[LibrarySummary] | None:
        """The libraries in a file that is still the same, often none; None: it must be read."""
        packed = self._known.get(key)
        if packed is None:
            return None
        try:
            libraries = [LibrarySummary.from_json(path, rest) for path, rest in packed]
        except (ValueError, TypeError, IndexError):
            return None
        self._seen[key] = packed
        return libraries

    def keep(self, key: str, status: os.stat_result, libraries: list[LibrarySummary]) -> None:
        """Remember what was read of a file, unless it just changed or could not be read."""
        settled = time.time() - max(status.st_ctime, status.st_mtime) > _SETTLING
        if settled and not any(library.problem for library in libraries):
            self._seen[key] = [[library.path, library.as_json()] for library in libraries]

    def save(self) -> None:
        """Write what was seen; where that is not possible, the next audit reads again."""
        if self._seen == self._known:
            return
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            new.write_text(json.dumps(self._seen, separators=(",", ":")), encoding="utf-8")
            new.replace(self.file)


def _loaded(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


@lru_cache(maxsize=1)
def code_digest() -> str:
    """A digest of the code and data that read device code: another version reads again."""
    digest = hashlib.sha256()
    sources = [
        *_PACKAGE.glob("audit/**/*.py"),
        *_PACKAGE.glob("audit/*.toml"),
        *_PACKAGE.glob("fatbin/**/*.py"),
    ]
    for path in sorted([*sources, _PACKAGE / "model" / "capability.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
