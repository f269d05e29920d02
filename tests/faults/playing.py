"""Play rounds: each drawn from a seed and its number, in a folder of its own, reported as a record."""

from __future__ import annotations

import random
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kinds import KINDS
from lying_index import Index
from mounts import own_mounts
from rounds import Round
from worlds import Template, new_world


@dataclass(frozen=True)
class Record:
    """What came of one round; `kept` is its folder when an invariant is broken."""

    number: int
    kind: str
    seconds: float
    faults: dict[str, int]
    broken: list[str]
    skipped: str = ""
    kept: str = ""
    trail: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The record as JSON."""
        return asdict(self)


class Player:
    """Plays rounds of one template in this process. Makes mounts of its own where that is allowed."""

    def __init__(
        self, template: Template, folder: Path, seed: int, kinds: Sequence[str] = (), in_turn: bool = False
    ) -> None:
        self._no_mounts = own_mounts()
        self.template, self.folder, self.seed = template, folder, seed
        self.kinds = {name: KINDS[name] for name in kinds or KINDS}
        self._in_turn = in_turn
        self._index = Index(template.wheels)
        self._cache = folder / "uv-cache"
        self._pace = 1.0

    def play(self, number: int) -> Record:
        """Play one round; keep its folder if anything broke.

        The kind is drawn by its share, or comes `in_turn`; the rest of the round does not depend on how.
        """
        chance = random.Random(f"{self.seed}:{number}")
        name = chance.choices(list(self.kinds), [kind.share for kind in self.kinds.values()])[0]
        if self._in_turn:
            name = list(self.kinds)[number % len(self.kinds)]
        if reason := self._missing(self.kinds[name].needs):
            return Record(number, name, 0.0, {}, [], skipped=reason)
        root = self.folder / f"round-{number}"
        world = new_world(self.template, root, self._index, self._cache)
        this, started = Round(world, chance, self._pace), time.monotonic()
        try:
            self.kinds[name].play(this)
        except Exception:
            this.broken.append(f"the suite itself failed: {traceback.format_exc()}")
        self._pace = this.pace
        if this.broken:
            (root / "trail").write_text("\n".join([name, *this.trail, "", *this.broken]) + "\n")
            shutil.rmtree(self._cache, ignore_errors=True)
            kept = self.folder.parent / "kept" / root.name
            kept.parent.mkdir(exist_ok=True)
            root.rename(kept)
        else:
            _remove(root)
        return Record(
            number, name, time.monotonic() - started, dict(this.faults), this.broken,
            kept=str(kept) if this.broken else "", trail=tuple(this.trail),
        )  # fmt: skip

    def _missing(self, needs: frozenset[str]) -> str:
        if "shim" in needs and not self.template.shim:
            return "no C compiler for the shim"
        return self._no_mounts if "mount" in needs else ""


def _remove(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)
