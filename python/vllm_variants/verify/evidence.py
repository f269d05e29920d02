"""Runs that were seen on a card and are kept in docs/evidence, as tables.

A file there holds a document of `verify --json`, or several as the `runs` of one in the order in which
they ran (`schemas/evidence-1.json`): a later run's outcome of a check stands for an earlier one's.
`verify --compare … --json` may lie beside them; what it prints has `against`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_variants.errors import InputError
from vllm_variants.verify import reports
from vllm_variants.versions import numbers

Document = Mapping[str, Any]
Rows = list[tuple[str, ...]]


def documents(folder: Path) -> list[Document]:
    """Every run of checks that `folder` holds, by release, the newest first; none if it is absent."""
    return [run for run in _all(folder) if "against" not in run]


def _all(folder: Path) -> list[Document]:
    """The same with comparisons among them."""
    runs = [run for path in sorted(folder.glob("*.json")) for run in _read(path)]
    return sorted(runs, key=lambda run: numbers(run["release"]), reverse=True)


def _read(path: Path) -> list[Document]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs: list[Document] = content.get("runs", [content])
        missing = [key for run in runs for key in ("release", "gpu", "checks") if key not in run]
        problem = f"no {missing[0]!r}" if missing else ""
    except (ValueError, TypeError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise InputError(
            f"{path} holds no run of checks ({problem})", hint="write one with vllm-variants verify --json"
        )
    return runs


def _column(run: Document) -> str:
    """Where a run's outcomes stand: those of one release on one kind of GPU share a column.

    Runs of a native result, where the driver may compile nothing, and of another environment have theirs.
    """
    native = "native" if run.get("native") else ""
    parts = (run["release"], run["gpu"]["name"], native, run.get("environment"))
    return ", ".join(part for part in parts if part)


def _cards(run: Document) -> str:
    """The same with how many of each kind of card there were, where there were several."""
    cards = Counter(gpu["name"] for gpu in run.get("gpus", ()))
    counted = " and ".join(f"{count} × {name}" for name, count in cards.items())
    return _column(run).replace(run["gpu"]["name"], counted or run["gpu"]["name"])


def runs(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """(head, rows) of a table: what ran where and when, and how it ended."""
    rows: Rows = [
        (
            _cards(run), run["driver"], run["finished"], str(run["seed"]),
            run["summary"] + (f" ({run['excerpt']})" if "excerpt" in run else ""),
        )
        for run in documents(folder)
    ]  # fmt: skip
    return ("release and GPU", "driver", "finished (UTC)", "seed", "outcome"), rows


def outcomes(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """(head, rows) of a table: every check, with what it showed for each release on each GPU.

    What a run could not try (a check of two cards on one) takes nothing from what another has shown.
    """
    columns: dict[str, dict[str, Document]] = {}
    for run in documents(folder):
        column = columns.setdefault(_column(run), {})
        for check in run["checks"]:
            if check["status"] != "skipped" or check["check"] not in column:
                column[check["check"]] = check
    names = sorted({name for outcomes in columns.values() for name in outcomes})
    rows: Rows = [(f"`{name}`", *(_cell(column.get(name)) for column in columns.values())) for name in names]
    return ("check", *columns), rows


def first_calls(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """(head, rows) of a table: what `verify --native --compare` showed of every check that both ran.

    The times are those of first calls: in the native result, where the driver may compile nothing, and in
    the other, where it compiles what is only there as PTX.
    """
    rows: Rows = [
        (
            run["release"], run["gpu"]["name"], f"`{check['check']}`", check["sentence"],
            *("" if time is None else reports.call_time(time) for time in check["first_ms"]),
        )
        for run in _all(folder) if "against" in run and run.get("native")
        for check in run["checks"] if check["likeness"] != "untried"
    ]  # fmt: skip
    return ("release", "GPU", "check", "outputs", "first call, native", "compiled by the driver"), rows


def _cell(outcome: Document | None) -> str:
    if outcome is None:
        return "not run"
    if (outcome["status"], outcome["verdict"]) != ("ok", "passed"):
        bold = "**" if outcome["verdict"] == "failed" else ""
        return f"{bold}{outcome['status']}{bold}: {outcome.get('sentence') or outcome['reason']}"
    error, times, image = reports.figures(outcome)
    cases = len(outcome["cases"])
    counted = f"{cases} case{'s' if cases > 1 else ''}: {error}" if cases else ""
    cards = f"{outcome['cards']} cards" if "cards" in outcome else ""
    return " · ".join(filter(None, ("ok", cards, counted, times, image)))
