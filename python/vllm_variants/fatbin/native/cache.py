"""Cubins that are kept: a folder that releases, variants, users and machines may share.

    $XDG_CACHE_HOME/vllm-variants/cubins/<first 2 digits>/<key>.cubin

The key is the sha256 of all that decides a cubin: PTX text, target, ptxas (version and digest) and
options. An entry is a line of JSON and the cubin as it is stored in images; it appears whole
(`system.atomic`), and is checked when it is read: what is damaged is compiled again. A folder that
cannot be read or written is a note, not an end. Who may write to the folder is trusted: an entry
says what it holds, not who made it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.fatbin.codecs import (
    LARGEST,
    LZ4,
    ZSTD,
    Codec,
    Encoded,
    Encoding,
    Undecodable,
    decode,
    encode,
)
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.model.capability import Target
from vllm_variants.system import atomic, folders

Note = Callable[[str], None]
"""Told what a person should know of the cache: a sentence."""

_SCHEMA = 1
_MOST_HEADER = 4096  # bytes of the line of JSON
_NAME = re.compile(r"[0-9a-f]{64}\.cubin")


def default_folder() -> Path:
    """`$VLLM_VARIANTS_CUBINS`, else the folder in `$XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get("VLLM_VARIANTS_CUBINS"):
        return Path(named).absolute()
    return folders.cache() / "cubins"


def key_of(text: bytes, target: Target, options: Sequence[str], compiler: Compiler) -> str:
    """The key of the cubin that `compiler` makes of PTX `text`."""
    parts = {
        "schema": _SCHEMA,
        "ptx": hashlib.sha256(text).hexdigest(),
        "target": target.sm,
        "options": list(options),
        "ptxas": compiler.version,
        "compiler": compiler.digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Kept:
    """A cubin, and its stored form where this version of the encoder would make the same bytes."""

    cubin: bytes
    stored: Encoded | None


@dataclass(frozen=True)
class Usage:
    """Cubins and their bytes on disk."""

    count: int = 0
    bytes: int = 0


class _Damaged(Exception):
    """Why an entry cannot be used, as a clause."""


class Cache:
    """The cubins under `root`. No method raises where the file system refuses: `note` is told, once."""

    def __init__(self, root: Path, *, encoding: Encoding = ZSTD, note: Note = lambda sentence: None) -> None:
        self.root, self._encoding, self._note = root, encoding, note
        self._refused: set[str] = set()

    def path(self, key: str) -> Path:
        """Where the entry of a key is, or would be."""
        return self.root / key[:2] / f"{key}.cubin"

    def get(self, key: str) -> Kept | None:
        """The cubin of a key, checked; None when there is none, or none that can be trusted."""
        path = self.path(key)
        try:
            kept = _parsed(_content(path), key, (self._encoding, ZSTD, LZ4))
        except FileNotFoundError:
            return None
        except _Damaged as damage:
            self._note(f"the cached cubin {path} is damaged ({damage}): it is compiled again")
            return None
        except OSError as error:
            self._refuse("read", error)
            return None
        with suppress(OSError):  # when it was last used, for `remove`; a share may be read-only
            os.utime(path)
        return kept

    def distrust(self, key: str, reason: str) -> None:
        """Say that the cubin of a key is whole and yet wrong."""
        self._note(f"the cached cubin {self.path(key)} is wrong ({reason}): it is compiled again")

    def put(self, key: str, cubin: bytes) -> Encoded:
        """Keep a cubin; returns it as stored, also where it could not be kept."""
        stored = encode(cubin, self._encoding)
        head = {
            "schema": _SCHEMA, "key": key, "sha256": hashlib.sha256(cubin).hexdigest(),
            "codec": str(stored.codec), "level": stored.encoding.level,
            "encoder": stored.encoding.identity, "size": stored.size, "stored": len(stored.data),
        }  # fmt: skip
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, json.dumps(head).encode() + b"\n" + stored.data)
        except OSError as error:
            self._refuse("written", error)
        return stored

    def usage(self) -> Usage:
        """How many cubins there are and what they take."""
        return _sum(status for _, status in self._entries())

    def remove(self, unused_for: float = 0.0) -> Usage:
        """Remove cubins that were not used for so many seconds, and what killed writers left."""
        gone = []
        for path, status in self._entries():
            if time.time() - status.st_mtime >= unused_for:
                try:
                    path.unlink()
                    gone.append(status)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self._refuse("cleared", error)
        for path in list(self.root.glob("??/.*")):
            with suppress(OSError):
                atomic.remove_leftover(path)
        for folder in list(self.root.glob("??")):
            with suppress(OSError):  # not empty, or not ours
                folder.rmdir()
        return _sum(gone)

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in sorted(self.root.glob("??/*.cubin")):
            with suppress(OSError):
                status = path.lstat()
                if _NAME.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                    yield path, status

    def _refuse(self, what: str, error: OSError) -> None:
        if what not in self._refused:
            self._refused.add(what)
            reason = error.strerror or str(error)
            self._note(f"the cache of cubins {self.root} cannot be {what} ({reason}): going on without it")


def _sum(statuses: Sequence[os.stat_result] | Iterator[os.stat_result]) -> Usage:
    sizes = [status.st_size for status in statuses]
    return Usage(len(sizes), sum(sizes))


def _content(path: Path) -> bytes:
    """The bytes of a regular file; never waits for a pipe, never follows a link, never reads without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Damaged("it is no file")
        if status.st_size > LARGEST + _MOST_HEADER:
            raise _Damaged(f"it has {status.st_size} bytes")
        return file.read(LARGEST + _MOST_HEADER)


def _parsed(content: bytes, key: str, encodings: Sequence[Encoding]) -> Kept:
    """The entry of a key; its stored form only where one of `encodings` would make the same bytes."""
    line, newline, data = content.partition(b"\n")
    if not newline or len(line) > _MOST_HEADER:
        raise _Damaged("it does not begin as an entry does")
    try:
        head = json.loads(line)
        codec, size, digest, encoder = (
            Codec(head["codec"]),
            int(head["size"]),
            head["sha256"],
            head["encoder"],
        )
        whole = head["schema"] == _SCHEMA and head["key"] == key and head["stored"] == len(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Damaged("it does not begin as an entry does") from error
    if not whole:
        raise _Damaged("it is cut off, or another key's")
    try:
        cubin = decode(data, codec, size)
    except Undecodable as error:
        raise _Damaged(error.message) from error
    if hashlib.sha256(cubin).hexdigest() != digest:
        raise _Damaged("its digest is another")
    same = next((encoding for encoding in encodings if encoding.identity == encoder), None)
    return Kept(cubin, Encoded(same, data, size) if same else None)
