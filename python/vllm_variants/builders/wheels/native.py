"""PTX in a build: compiled ahead with `--native`, and without it what waits for the driver, and how long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.fatbin.native import cache, schedule
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.library import Native, NativeLibrary, plan_tree
from vllm_variants.fatbin.native.queue import Limits, Progress
from vllm_variants.fatbin.tree import elf_files
from vllm_variants.machine import memory
from vllm_variants.model.capability import Capability
from vllm_variants.system.progress import Say

_SAY_EVERY = 20.0
"""Seconds between two lines of progress."""
_MOST_REASONS = 5
"""Lines about what is left."""


def ahead(compiler: Compiler, say: Say, jobs: int | None = None) -> Native:
    """How this machine compiles: as many at once as processors (or `jobs`), saying how far it is."""
    last = time.monotonic()

    def progress(state: Progress) -> None:
        nonlocal last
        if state.done == state.total or time.monotonic() - last >= _SAY_EVERY:
            last = time.monotonic()
            say(state.sentence())

    limits = Limits(jobs or memory.processors(), memory.available)
    return Native(compiler, Cache(cache.default_folder(), note=say), limits, progress)


def summary(libraries: tuple[NativeLibrary, ...], compiler: Compiler) -> dict[str, object]:
    """What was compiled, for the manifest: counts, CPU seconds, bytes, and what is left, with the reason."""
    cubins = [cubin for library in libraries for cubin in library.cubins]
    return {
        "compiler": compiler.as_dict(),
        "cubins": len(cubins),
        "from_cache": sum(cubin.cached for cubin in cubins),
        "cpu_seconds": round(sum(cubin.seconds for cubin in cubins), 1),
        "ptx_bytes": sum(cubin.ptx_stored for cubin in cubins),
        "cubin_bytes": sum(cubin.stored for cubin in cubins),
        "left": [
            {"library": library.plan.name, "device": str(left.device), "reason": left.reason}
            for library in libraries
            for left in library.left
        ],
    }


def left_sentences(native: Mapping[str, Any]) -> list[str]:
    """What a native build could not compile, for its last lines; `native` is a `summary`."""
    counts = Counter(left["reason"] for left in native["left"])
    lines = [
        f"left to the driver: {count} fat {'binary' if count == 1 else 'binaries'}, since {reason}"
        for reason, count in counts.most_common(_MOST_REASONS)
    ]
    more = len(counts) - len(lines)
    return [*lines, f"left for {more} more reasons: they are in the manifest"] if more else lines


@dataclass(frozen=True)
class Waiting:
    """PTX that the driver compiles at first use: how many fat binaries of how many libraries, and the
    seconds that it takes one core (as the driver does it), and this machine with `--native`."""

    containers: int
    libraries: int
    seconds: float
    here: float

    def as_dict(self) -> dict[str, object]:
        """For the manifest; how fast this machine is does not belong there."""
        return {
            "containers": self.containers,
            "libraries": self.libraries,
            "cpu_seconds": round(self.seconds),
        }

    def sentences(self, sm: str) -> list[str]:
        """For the last lines of a build; none where nothing waits."""
        if not self.containers:
            return []
        return [
            f"{self.containers} fat binaries of {self.libraries} libraries hold no code for {sm}: the driver"
            " compiles each when it is first used, and again in every new container, together about"
            f" {duration(self.seconds)} of work",
            f"--native compiles them now, once: about {duration(self.here)} on this machine",
        ]


def waiting(tree: Path, device: Capability, libraries: Sequence[Path] | None = None) -> Waiting:
    """What of the libraries in `tree` waits for the driver's compiler on `device`.

    `libraries` are those where something may, for who knows; else all are read.
    """
    plans = plan_tree(elf_files(tree) if libraries is None else libraries, tree, [device])
    sizes = sorted(size for plan in plans for size in plan.sizes)
    left = sum(len(plan.left) for plan in plans)
    seconds = sum(schedule.cpu_seconds(size) for size in sizes)
    return Waiting(len(sizes) + left, len(plans), seconds, schedule.total(sizes, memory.processors()))


def duration(seconds: float) -> str:
    """For people: `40 s`, `12 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
