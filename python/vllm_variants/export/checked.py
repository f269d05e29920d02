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
    """A stream that knows the SHA-256 of all that was read from it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.found = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        data = self._source.read(size)
        self.found.update(data)
        return data


@contextmanager
def reading(path: Path, recorded: Collection[str]) -> Iterator[_Hashed]:
    """A file, to be read whole within the block; `recorded` are the hashes that RECORDs have of it, if any.

    Two packages may have one file: it is what either says. Raises `DamagedError` for a file that is not
    there, and at the end for one that is another.
    """
    try:
        source = path.open("rb")
    except OSError as error:
        raise lost(path) from error
    with source:
        hashed = _Hashed(source)
        yield hashed
    if recorded and encoded(hashed.found) not in recorded:
        raise lost(path)


def lost(path: Path) -> Error:
    """The error for a file that a RECORD lists and that is not there, or that is another than it says."""
    return DamagedError(
        f"{os.path.normpath(path)} is not the file that its RECORD lists: the result is damaged",
        hint="build the variant again",
    )
