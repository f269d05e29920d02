"""Runs of GPU checks for a report: `verify --json` documents and files of evidence, put together by card.

Runs of one release on one kind of card belong together, and a later run's outcome of a check stands for an
earlier one's, as in docs/evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_variants.errors import InputError
from vllm_variants.reports import reading

Run = Mapping[str, Any]
_CHECK = (
    "check",
    "status",
    "verdict",
    "reason",
    "sentence",
    "first_ms",
    "median_ms",
    "error",
    "tolerance",
    "image",
)
_COMPARED = ("check", "likeness", "sentence", "first_ms", "median_ms")
_RUN = ("driver", "finished", "seed", "tool", "commit", "command", "summary", "excerpt", "against")


@dataclass(frozen=True)
class Seen:
    """What was seen on one kind of card: the runs, and each check as the last of them left it.

    `compared`: outputs of two results were held against each other, and `checks` have times of both.
    """

    variant: str
    release: str
    gpu: str
    capability: str
    native: bool
    environment: str
    compared: bool
    runs: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def counts(self) -> dict[str, int]:
        """How many checks count as what: `ok`, `unsupported` (rightly), `failed`, `skipped`, `open`."""
        counted: dict[str, int] = {}
        for check in self.checks:
            word = check["status"] if check["verdict"] == "passed" else check["verdict"]
            counted[word] = counted.get(word, 0) + 1
        return counted


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs in files, and in all JSON files of folders; `InputError` for a file that holds none."""
    found: list[Run] = []
    for path in paths:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path} has no .json file in it", hint="name a file that verify --json printed")
        for file in files:
            found += _runs(file)
    return found


def _runs(path: Path) -> list[Run]:
    document = reading.document(path)
    runs = document.get("runs", [document])
    with reading.expected(path, "no run of checks", hint="write one: vllm-variants verify SM --json"):
        for run in runs:
            _ = run["variant"], run["release"], run["gpu"]["name"], run["gpu"]["capability"], run["driver"]
            for check in run["checks"]:
                _ = check["check"], check["likeness" if "against" in run else "verdict"]
    return list(runs)


def matching(runs: Iterable[Run], subjects: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Those of the runs that were of one of these results: the same variant, release and way of building."""
    wanted = {(s["variant"], s["release"], bool(s["native"])) for s in subjects if s["variant"]}
    return [run for run in runs if (run["variant"], run["release"], bool(run.get("native"))) in wanted]


def together(runs: Iterable[Run]) -> list[Seen]:
    """The runs by card: checks before comparisons, those with the most checks first."""
    cards: dict[tuple[Any, ...], Seen] = {}
    for run in sorted(runs, key=lambda run: run.get("finished", "")):
        compared = "against" in run
        key = (
            run["variant"],
            run["release"],
            run["gpu"]["name"],
            run["gpu"]["capability"],
            bool(run.get("native")),
            run.get("environment", ""),
            compared,
        )
        seen = cards.setdefault(key, Seen(*key))
        seen.runs.append({name: run[name] for name in _RUN if name in run})
        _add(seen.checks, run["checks"], compared)
    return sorted(cards.values(), key=lambda seen: (seen.compared, -len(seen.checks)))


def _add(kept: list[dict[str, Any]], checks: Iterable[Mapping[str, Any]], compared: bool) -> None:
    names = {check["check"]: index for index, check in enumerate(kept)}
    for check in checks:
        fields = _COMPARED if compared else _CHECK
        short = {name: check[name] for name in fields if check.get(name) is not None}
        if not compared:
            short["cases"] = len(check.get("cases", ()))
        index = names.setdefault(check["check"], len(kept))
        if index == len(kept):
            kept.append(short)
        elif not (compared and short["likeness"] == "untried"):
            kept[index] = short
    kept.sort(key=lambda check: str(check["check"]))
