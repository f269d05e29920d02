"""The published wheels of a release, installed as they are: hard links into uv's cache cost no disk."""

from __future__ import annotations

from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.builders.wheels import installation, locks
from vllm_variants.machine import interpreters
from vllm_variants.model.variants import Release

SYSTEM = "x86_64-linux"


def install(release: Release, folder: Path, system: str = SYSTEM) -> Path:
    """Install the lock of `release` for `system` into `folder`; downloads what uv's cache lacks. Its path."""
    lock = locks.find(release, system)
    installation.environment(folder, interpreters.find(release.stack.python))
    installation.sync(folder, lock, [lock.path], None)
    return folder
