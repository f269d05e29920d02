"""This machine's C library, held to the one that a release's wheels need."""

from __future__ import annotations

import platform

from vllm_variants.errors import UnsupportedError
from vllm_variants.model.variants import Release
from vllm_variants.versions import numbers


def problem(release: Release) -> str | None:
    """Why this machine's C library cannot run the wheels of `release`, as a sentence; None: it can."""
    name, version = platform.libc_ver()
    if name != "glibc":
        return f"the wheels need glibc {release.glibc}, this system has {name or 'another'}"
    if numbers(version) < numbers(release.glibc):
        return f"the wheels of release {release.name} need glibc {release.glibc}, this system has {version}"
    return None


def require(release: Release) -> None:
    """Raise `UnsupportedError` when the wheels of `release` do not run with this machine's C library."""
    if reason := problem(release):
        raise UnsupportedError(
            reason, hint="use a newer distribution, a container of one, or another release"
        )
