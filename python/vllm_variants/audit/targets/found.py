"""What reading something gives: its libraries, what it is, and which vLLM is in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from vllm_variants.audit.summary import LibrarySummary


class Kind(StrEnum):
    """What was audited."""

    ENVIRONMENT = "environment"
    WHEELHOUSE = "wheelhouse"
    LOCK = "lock"
    OCI_LAYOUT = "oci-layout"
    IMAGE_ARCHIVE = "docker-archive"
    STORE_PATH = "store-path"
    RESULT = "result"
    WHEEL = "wheel"
    LIBRARY = "library"
    FOLDER = "folder"


@dataclass(frozen=True)
class Found:
    """Libraries with device code, or that could not be read; `release` of vLLM, None where none is named.

    `notes` are sentences for the person: what was chosen, what was not looked at. `roots` is
    what was read, where it is more than the path that was named.
    """

    kind: Kind
    libraries: tuple[LibrarySummary, ...]
    release: str | None = None
    notes: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()


Progress = Callable[[str], None]
"""Called with the name of what is read next."""

_DIST_INFO = re.compile(r"(?:^|/)vllm-([^-+/]+)(?:\+[^-/]*)?(?:\.dist-info|-[^/]*\.whl)(?:/|$)")


def release_in(names: Iterable[str]) -> str | None:
    """The release of the vLLM whose metadata or wheel is among names of files; None: none is."""
    return next((match[1] for name in names if (match := _DIST_INFO.search(name))), None)
