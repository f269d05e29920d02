"""What each check is, and on which SM of which release it must succeed: `checks/catalogue.toml`."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm_variants.errors import InputError, UsageError

CHECKS = Path(__file__).resolve().parent.parent / "checks"

Expected = Literal["ok", "unsupported", "open"]


@dataclass(frozen=True)
class Support:
    """The SMs that must run a check (None: all), and those that nothing decides."""

    ok: frozenset[str] | None
    open: frozenset[str]

    def expected(self, sm: str) -> Expected:
        """`ok`, `unsupported`, or `open` where what happens is not judged."""
        if sm in self.open:
            return "open"
        return "ok" if self.ok is None or sm in self.ok else "unsupported"


@dataclass(frozen=True)
class Check:
    """One check: its name, the script that defines it, its time limit in seconds, the GPUs it needs.

    `most_gpus`: how many it can use where there are more. `says` is what it proves, in a clause;
    `support` holds for releases that `releases` does not name.
    `compiles` says why it needs the driver's compiler even where a result is native; empty: it does not.
    """

    name: str
    script: str
    says: str
    limit: float
    gpus: int
    support: Support
    releases: Mapping[str, Support] = field(default_factory=dict)
    compiles: str = ""
    most_gpus: int = 0

    def share(self, cards: Sequence[str]) -> tuple[str, ...]:
        """Those of these cards that it gets: the first, as many as it can use; fewer than it needs: none."""
        return tuple(cards[: max(self.gpus, self.most_gpus)]) if len(cards) >= self.gpus else ()

    def expected(self, release: str, sm: str) -> Expected:
        """What must happen on `sm` ("sm90") with this release ("0.13.0")."""
        return self.releases.get(release, self.support).expected(sm)


def _support(table: Mapping[str, Any]) -> Support:
    ok = table.get("ok")
    return Support(None if ok is None else frozenset(ok), frozenset(table.get("open", ())))


def read(path: Path | None = None) -> tuple[Check, ...]:
    """All checks in the file's order; `InputError` says which entry is broken."""
    path = path or CHECKS / "catalogue.toml"
    name = "the file"
    try:
        tables: Mapping[str, Mapping[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["check"]
        checks = []
        for name, table in tables.items():
            checks.append(
                Check(
                    name=name,
                    script=table["script"],
                    says=table["says"],
                    limit=float(table["limit"]),
                    gpus=int(table.get("gpus", 1)),
                    support=_support(table),
                    releases={key: _support(value) for key, value in table.get("release", {}).items()},
                    compiles=table.get("compiles", ""),
                    most_gpus=int(table.get("most_gpus", 0)),
                )
            )
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: {name} is broken: {error}") from error
    return tuple(checks)


def select(checks: Iterable[Check], patterns: Iterable[str]) -> tuple[Check, ...]:
    """The checks whose name matches one of the patterns: `marlin`, `moe.*`, `*fp8*`; all without any.

    Raises `UsageError` for a pattern that matches nothing: a run of no checks would pass.
    """
    checks, patterns = tuple(checks), tuple(patterns)
    if not patterns:
        return checks
    selected = set()
    for pattern in patterns:
        matches = {
            check.name
            for check in checks
            if fnmatch.fnmatchcase(check.name, pattern) or check.name.split(".")[0] == pattern
        }
        if not matches:
            groups = ", ".join(dict.fromkeys(check.name.split(".")[0] for check in checks))
            raise UsageError(
                f"no check is called {pattern!r}", hint=f"use a name, a pattern or one of: {groups}"
            )
        selected |= matches
    return tuple(check for check in checks if check.name in selected)
