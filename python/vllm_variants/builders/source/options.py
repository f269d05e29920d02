"""How a batch of source builds is run, and what shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.builders import display
from vllm_variants.builders.source.finishing import Cache


@dataclass(frozen=True)
class Options:
    """How a batch is built.

    `cores` and `max_jobs` None: computed from memory. `retries`: how often what failed is tried
    again. `logs` None: a new folder in the state folder.
    """

    cores: int | None = None
    max_jobs: int | None = None
    keep_going: bool = True
    retries: int = 0
    logs: Path | None = None
    cache: Cache | None = None


Show = Callable[[Callable[[], display.View]], display.Display]
