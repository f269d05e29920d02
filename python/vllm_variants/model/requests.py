"""What a builder is given: one variant to build, and the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_variants.model.variants import Release, Variant


@dataclass(frozen=True)
class Request:
    """One variant to build, and how.

    `links` is the folder that gets the `result-…` link. `index` is the address of one more package
    index, `python` the interpreter to use; None lets the builder decide.

    The rest is what the `wheels` builder does to what it installed; without `slim` libraries and files
    stay as they were published. `keep_ptx`: one PTX a container stays, for later devices. `native`:
    PTX that the device would compile is compiled ahead of time. `compress` is the codec of the images
    (`none`, `lz4`, `zstd`; None: the smallest that the release's oldest driver reads). `keep_symbols`:
    sections that nothing loads stay. `keep_unread`: files that nothing opens stay; `without` names
    more that go. `bytecode` is made for `all` modules, for those that `serving` imports, or for `none`.
    """

    variant: Variant
    release: Release
    links: Path
    index: str | None = None
    python: Path | None = None
    slim: bool = True
    keep_ptx: bool = False
    native: bool = False
    compress: str | None = None
    keep_symbols: bool = False
    keep_unread: bool = False
    without: tuple[str, ...] = ()
    bytecode: str = "serving"

    @property
    def name(self) -> str:
        """The variant's full name."""
        return self.variant.name(self.release)

    @property
    def link(self) -> Path:
        """The link that the result gets."""
        return self.links / f"result-{self.name}"
