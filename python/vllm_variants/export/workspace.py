"""The folder in which an export makes what it is made of: the copy of Python, Debian's packages.

It lies in `$TMPDIR`, where programs may be run, which a destination need not allow. A killed export cannot
remove it, so the next one does: its name and a locked file in it say whose it is, and whether it is in use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_variants.system import new_folder

_NAME = "vllm-variants-export"


@contextmanager
def opened() -> Iterator[Path]:
    """A new folder that is gone when the block ends; what this user's killed exports left goes now.

    Raises `OSError` where there is no temporary folder that can be written to.
    """
    place = Path(tempfile.gettempdir(), _NAME)
    new_folder.remove_leftovers(place, only_own=True)
    with new_folder.aside(place) as folder:
        yield folder
