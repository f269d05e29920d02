"""What was read of files that are still the same, so that an audit of an installed tree takes a second.

One file for each audited tree, in the cache folder. A file counts as the same while its path, inode,
size, time of change and time of status change (in nanoseconds) are: the last cannot be set by programs, and
every write, `touch` and rename over it moves it. Its device is left out, since each container mounts its
layers as another one. What changed within `_SETTLING` seconds before the audit is not kept, since a clock has
ticks. Everything kept is of exactly this code: its digest is in the name of the cache's file.

An image is unpacked anew on every host, where inodes and times of status change are others. What was read may
therefore also be remembered in the tree itself (`remember`), by path, size and time of change in seconds, as
a layer has them: its digest vouches that its files and this memory belong together.

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
from vllm_variants.system import folders, reporting

MEMORY = Path("share", "vllm-variants", "audited.json")
"""Where a tree remembers what was read of it."""
_SETTLING = 2.0
_PACKAGE = Path(__file__).parents[1]


class Cache:
    """What is known of the files below `root`, before they are looked at.

    `fresh`: nothing of what was kept before is used.
    """

    def __init__(self, root: Path, fresh: bool = False) -> None:
        self._began = time.time()
        name = hashlib.sha256(os.fsencode(f"{os.path.realpath(root)}\n{code_digest()}")).hexdigest()[:32]
        self.file = folders.cache() / "audits" / f"{name}.json"
        self._memory = root / MEMORY
        self._known: dict[str, Any] = {} if fresh else _loaded(self.file)
        remembered = {} if fresh or self._known else _loaded(self._memory)
        files = remembered.get("files") if remembered.get("code") == code_digest() else None
        self._remembered: dict[str, Any] = files if isinstance(files, dict) else {}
        self._seen: dict[str, Any] = {}
        self._lasting: dict[str, Any] = {}

    def get(self, path: str, status: os.stat_result) -> list[LibrarySummary] | None:
        """The libraries in a file that is still the same, often none; None: it must be read.

        `path` is the one that its features are told by.
        """
        packed = self._known.get(_key(path, status), self._remembered.get(_lasting_key(path, status)))
        if packed is None:
            return None
        try:
            libraries = [LibrarySummary.from_json(path, rest) for path, rest in packed]
        except (ValueError, TypeError, IndexError):
            return None
        self._note(path, status, packed)
        return libraries

    def keep(self, path: str, status: os.stat_result, libraries: list[LibrarySummary]) -> None:
        """Remember what was read of a file, unless it just changed or could not be read."""
        settled = self._began - max(status.st_ctime, status.st_mtime) > _SETTLING
        if settled and not any(library.problem for library in libraries):
            self._note(path, status, [[library.path, library.as_json()] for library in libraries])

    def _note(self, path: str, status: os.stat_result, packed: list[Any]) -> None:
        self._seen[_key(path, status)] = packed
        if packed:
            self._lasting[_lasting_key(path, status)] = packed

    def remember(self) -> None:
        """Write what was seen into the tree itself; `ResourceError` where that is not possible.

        Of files without device code nothing is written: they are looked at in an instant.
        """
        document = {"code": code_digest(), "files": self._lasting}
        reporting.write(self._memory, json.dumps(document, separators=(",", ":")) + "\n")

    def save(self) -> None:
        """Write what was seen; where that is not possible, the next audit reads again."""
        if self._seen == self._known:
            return
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            new.write_text(json.dumps(self._seen, separators=(",", ":")), encoding="utf-8")
            new.replace(self.file)


def _key(path: str, status: os.stat_result) -> str:
    facts = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return f"{':'.join(map(str, facts))} {path}"


def _lasting_key(path: str, status: os.stat_result) -> str:
    return f"{status.st_size}:{int(status.st_mtime)} {path}"


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
