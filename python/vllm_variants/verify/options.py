"""The options of a run of checks: one table for both command lines.

`vllm-variants verify` makes them with typer, `python -m vllm_variants.verify` with argparse.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.verify.running import RunOptions


@dataclass(frozen=True)
class Option:
    """One option: how it is written, what it means, what its value is called (None: it takes none)."""

    flag: str
    help: str
    metavar: str | None = None
    read: Callable[[str], Any] = str
    default: Any = None

    @property
    def name(self) -> str:
        """The name of the parameter that takes its value."""
        return self.flag.removeprefix("--")


ONLY = Option("--only", "Checks by name, group or pattern: moe, '*fp8*'.", "PATTERN")
NATIVE = Option("--native", "Forbid the driver to compile: a check that needs its compiler fails.")
SEED = Option("--seed", "The inputs' seed; a fresh one if it is left out.", "NUMBER", int)
TOGETHER = Option("--together", "So many checks share the GPU: faster, coarser times.", "NUMBER", int, 1)
AHEAD = Option("--ahead", "Interpreters that load while others run.", "NUMBER", int, 2)
TIME = Option("--time", "End the run after so many seconds; the rest is skipped.", "SECONDS", float)
LOGS = Option("--logs", "Keep the checks' logs in this folder.", "FOLDER", Path)
VALUES = (SEED, TOGETHER, AHEAD, TIME, LOGS)
"""Those with one value, in the order of `run_options`."""


def run_options(
    *,
    seed: int | None,
    together: int = 1,
    ahead: int = 2,
    time: float | None = None,
    logs: Path | None = None,
) -> RunOptions:
    """How to run checks, from the values of `VALUES`: with a fresh seed and without an end if those lack."""
    return RunOptions(
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        together=together,
        ahead=ahead,
        time=float("inf") if time is None else time,
        logs=logs,
    )
