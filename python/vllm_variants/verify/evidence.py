"""Runs that were seen on a card and are kept in docs/evidence, as tables.

A file there holds a document of `verify --json`, or several as the `runs` of one in the order in which
they ran (`schemas/evidence-1.json`): a later run's outcome of a check stands for an earlier one's.
`verify --compare … --json` may lie beside them; what it prints has `against`.
"""

from __future__ import annotations

import json
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
    found = [run for path in sorted(folder.glob("*.json")) for run in _read(path) if "against" not in run]
    return sorted(found, key=lambda run: numbers(run["release"]), reverse=True)


def _read(path: Path) -> list[Document]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        runs: list[Document] = read.get("runs", [read])
        missing = [key for run in runs for key in ("release", "gpu", "checks") if key not in run]
        problem = f"no {missing[0]!r}" if missing else ""
    except (ValueError, TypeError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise InputError(
            f"{path} holds no run of checks ({problem})", hint="write one with vllm-variants verify --json"
        )
    return runs


def _subject(run: Document) -> str:
    return f"{run['release']}, {run['gpu']['name']}"


def runs(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """(head, rows) of a table: what ran where and when, and how it ended."""
    rows: Rows = [
        (
            run["release"], run["gpu"]["name"], run["driver"], run["finished"], str(run["seed"]),
            run["summary"] + (f" ({run['excerpt']})" if "excerpt" in run else ""),
        )
        for run in documents(folder)
    ]  # fmt: skip
    return ("release", "GPU", "driver", "finished (UTC)", "seed", "outcome"), rows


def outcomes(folder: Path) -> tuple[tuple[str, ...], Rows]:
    """(head, rows) of a table: every check, with what it showed for each release on each GPU."""
    seen: dict[str, dict[str, Document]] = {}
    for run in documents(folder):
        for check in run["checks"]:
            seen.setdefault(_subject(run), {})[check["check"]] = check
    checks = dict.fromkeys(name for shown in seen.values() for name in shown)
    rows: Rows = [
        (f"`{name}`", *(_cell(shown.get(name)) for shown in seen.values())) for name in sorted(checks)
    ]
    return ("check", *seen), rows


def _cell(outcome: Document | None) -> str:
    if outcome is None:
        return "not run"
    if (outcome["status"], outcome["verdict"]) != ("ok", "passed"):
        bold = "**" if outcome["verdict"] == "failed" else ""
        return f"{bold}{outcome['status']}{bold}: {outcome.get('sentence') or outcome['reason']}"
    error, times, image = reports.figures(outcome)
    cases = len(outcome["cases"])
    counted = f"{cases} case{'s' if cases > 1 else ''}: {error}" if cases else ""
    return " · ".join(filter(None, ("ok", counted, times, image)))
