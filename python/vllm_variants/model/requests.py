"""What a builder is given: one variant to build, and the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_variants.model.variants import Release, Variant


@dataclass(frozen=True)
class Request:
    """One variant to build, and how.

    `links` is the folder that gets the `result-…` link. `index` is the URL of one more package index,
    `python` the interpreter to use; None lets the builder decide. `slim` drops the images for other SMs,
    `keep_ptx` keeps their PTX all the same.
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
