"""Files of a result, held to the hashes in its RECORDs while they are read: a damaged one is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vllm_variants.builders.wheels.records import encoded
from vllm_variants.errors import Error
from vllm_variants.model.results import DamagedError


class _Hashed:
    """A stream that knows the SHA-256 and the count of all bytes that were read from it.

    Raises `DamagedError` where it ends before `size` bytes.
    """

    def __init__(self, path: Path, source: IO[bytes], size: int) -> None:
        self._path, self._source, self._size = path, source, size
        self.found, self.count = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        data = self._source.read(size)
        self.found.update(data)
        self.count += len(data)
        if self.count < self._size and not 0 <= size <= len(data):
            raise _changed(self._path)
        return data


@contextmanager
def reading(path: Path, size: int, recorded: Collection[str]) -> Iterator[_Hashed]:
    """A file of `size` bytes, to be read whole within the block; `recorded` are the hashes that RECORDs have.

    Two packages may have one file: it is what either says. Raises `DamagedError` for a file that is not
    there, for one that is longer or shorter than it was, and at the end for one that is another.
    """
    try:
        source = path.open("rb")
    except OSError as error:
        raise lost(path) from error
    with source:
        hashed = _Hashed(path, source, size)
        yield hashed
    if hashed.count != size:
        raise _changed(path)
    if recorded and encoded(hashed.found) not in recorded:
        raise lost(path)


def _changed(path: Path) -> Error:
    return DamagedError(
        f"{os.path.normpath(path)} was changed while it was exported", hint="export the result again"
    )


def lost(path: Path) -> Error:
    """The error for a file that a RECORD lists and that is not there, or that is another than it says."""
    return DamagedError(
        f"{os.path.normpath(path)} is not the file that its RECORD lists: the result is damaged",
        hint="build the variant again",
    )
