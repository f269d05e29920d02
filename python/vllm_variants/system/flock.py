"""The operating system's lock of an open file: held until the file is closed, or its process ends."""

from __future__ import annotations

import fcntl

from vllm_variants.errors import resource_error


def locked(descriptor: int, *, wait: bool = False) -> bool:
    """Take the lock of an open file; False when another holds it and `wait` is not set.

    Raises `ResourceError` where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise resource_error(error) from error
    return True
