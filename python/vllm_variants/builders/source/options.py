"""How a batch of source builds is run, where its results are pushed, and what shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vllm_variants.builders import display
from vllm_variants.errors import UsageError

Show = Callable[[Callable[[], display.View]], display.Display]
"""Makes the display of a batch, out of what gives the batch as it stands."""


@dataclass(frozen=True)
class Cache:
    """A store to push to (`file://`, `s3://`, `ssh-ng://`, …) and the file of the key that signs, if any.

    Raises `UsageError` for an address without a scheme, and for a key that is not there.
    """

    url: str
    key: Path | None = None

    def __post_init__(self) -> None:
        if not urlsplit(self.url).scheme:
            raise UsageError(
                f"--push {self.url} is not the address of a store",
                hint="write file:///srv/cache, s3://bucket or ssh-ng://host",
            )
        if self.key and not self.key.is_file():
            raise UsageError(
                f"there is no signing key {self.key}",
                hint=f"make one: nix key generate-secret --key-name cache.example.org-1 > {self.key}",
            )

    @property
    def is_binary_cache(self) -> bool:
        """Whether paths lie there as files, signed as they are written; else in a Nix store."""
        return urlsplit(self.url).scheme in {"file", "s3", "http", "https"}


@dataclass(frozen=True)
class Options:
    """How a batch is built.

    `cores` (compile jobs a build) and `max_jobs` (builds at once) None: computed from memory. `retries`:
    how often what failed is tried again. `logs` None: a new folder in the state folder.
    """

    cores: int | None = None
    max_jobs: int | None = None
    keep_going: bool = True
    retries: int = 0
    logs: Path | None = None
    cache: Cache | None = None
