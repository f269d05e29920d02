"""Builders: three ways to make a result, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vllm_variants.matrix import Release, Variant
from vllm_variants.results import Result

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """One variant to build, and how.

    `links` is the folder that gets the `result-…` link. `index` is the address of one more package
    index, `python` the interpreter to use; None lets the builder decide. `slim` and `keep_ptx`
    say what becomes of the images for other SMs.
    """

    variant: Variant
    release: Release
    links: Path
    index: str | None = None
    python: Path | None = None
    slim: bool = True
    keep_ptx: bool = False

    @property
    def name(self) -> str:
        """The variant's full name."""
        return self.variant.name(self.release)

    @property
    def link(self) -> Path:
        """The link that the result gets."""
        return self.links / f"result-{self.name}"


class Builder(Protocol):
    """Makes results. `build` raises an `errors.Error`, and then has left neither result nor link."""

    name: str

    def build(self, request: Request, say: Say) -> Result:
        """Build one variant and link it; talk to the person through `say`."""
        ...
