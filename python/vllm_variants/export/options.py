"""What a person may ask of an export; each option is of some forms only (`cli/export.py` sees to it)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_variants.system.progress import Advance, Say


@dataclass(frozen=True)
class Options:
    """The options of all forms.

    Of folders, archives and images: `python` is the interpreter to include, None for one that uv
    installs, else the result's own. Of what is compressed: `gzip` instead of zstd. Of images: `base`, an
    image layout to stand on (None: Debian packages), and `push`, the `docker://…` to copy it to. Of
    wheelhouses: `all_wheels` has the published wheels in it too, `variants` makes variant wheels.
    """

    python: Path | None = None
    gzip: bool = False
    base: str | None = None
    push: str | None = None
    all_wheels: bool = False
    variants: bool = False


def _quiet(line: str) -> None:
    pass


@dataclass(frozen=True)
class Talk:
    """Whom an export tells what it does: `say` hears lines, `advance` bytes done and of how many."""

    say: Say = _quiet
    advance: Advance = lambda done, total: None
