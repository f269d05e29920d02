"""One round of the fault suite: a world, what was done to it, and which invariants broke.

A round makes a world, disturbs the real command line in it, checks every invariant after each fault,
and ends with an undisturbed run that must succeed and leave everything whole. Its kinds are in `kinds.py`.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import invariants
from commands import Ended
from worlds import World

Arguments = Sequence[str | Path]


@dataclass
class Round:
    """One round: its world, its chance, and what came of it. `pace` is how slow this machine is now."""

    world: World
    chance: random.Random
    pace: float = 1.0
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)

    def note(self, ended: Ended, succeeds: bool = False) -> Ended:
        """Record how a command ended, with what is broken about that."""
        struck = f"; {ended.struck}" if ended.struck else ""
        self.trail.append(f"{ended.command} → {ended.status} ({ended.seconds:.2f} s{struck})")
        self.hold(invariants.ended_well(ended, succeeds), ended.command)
        if ended.err.strip():
            self.trail.append("    " + ended.err.strip()[-3000:].replace("\n", "\n    "))
        return ended

    def hold(self, sentences: Sequence[str], when: str = "") -> None:
        """Record broken invariants."""
        self.broken += [f"{when}: {sentence}" if when else sentence for sentence in sentences]

    def keep_area(self) -> None:
        """Copy the world's area, before its small disk goes away, when an invariant is broken."""
        if self.broken:
            shutil.copytree(self.world.area, self.world.root / "area-kept", symlinks=True)

    def undisturbed(self, *arguments: str | Path) -> Ended:
        """Run a command that must succeed."""
        return self.note(self.world.run(*arguments), succeeds=True)
