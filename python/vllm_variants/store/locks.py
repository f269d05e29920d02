"""Locks of the store: `flock` on a file, which the kernel lets go of when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_variants.errors import ResourceError
from vllm_variants.system import flock


@contextmanager
def hold(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `file` while the block runs; calls `waiting` once when another process holds it.

    Raises `ResourceError` where the file cannot be made or locked.
    """
    descriptor = _opened(file)
    try:
        if not flock.locked(descriptor):
            waiting()
            flock.locked(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_hold(file: Path) -> Iterator[bool]:
    """Hold the lock `file` while the block runs, if it is free; whether it is ours. Errors as of `hold`."""
    descriptor = _opened(file)
    try:
        yield flock.locked(descriptor)
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ResourceError(
            f"the lock {file} cannot be made: {error.strerror}",
            hint="make room, or set XDG_DATA_HOME to a folder that you can write to",
        ) from error
