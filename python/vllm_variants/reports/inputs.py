"""What a person names to have a report of it: a variant's result, a path, or a JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants import documents
from vllm_variants.audit.find import absent, examined
from vllm_variants.errors import InputError, MissingError, UsageError
from vllm_variants.model import matrix, results
from vllm_variants.model.capability import Capability
from vllm_variants.reports import reading, subjects
from vllm_variants.reports.auditing import DriverFor, audited, no_driver
from vllm_variants.reports.packages import owners
from vllm_variants.reports.subjects import Subject

Say = Callable[[str], None]


@dataclass(frozen=True)
class Named:
    """The subjects that one word stands for; `batch`: they are the outcomes of a batch of builds."""

    subjects: tuple[Subject, ...]
    batch: bool = False


def read(word: str, device: Capability | None, progress: Say, driver_for: DriverFor = no_driver) -> Named:
    """What `word` names: a path, or a variant, whose `./result-…` is meant.

    `device` is what a path is audited for that does not say so itself, `driver_for` gives the driver that a
    device would run on; `progress` hears of libraries that are read. Raises `MissingError` for what is not
    there, `InputError` for what is broken, `ResourceError` for wheels that cannot be reached, `UsageError`.
    """
    path = Path(word)
    if not path.exists() and not path.is_symlink():
        path = _link(word, path)
    if reading.looks_like_json(path):
        return _document(path)
    examined(path)
    if (path / results.MANIFEST).is_file():
        result = results.read(path)
        return Named((subjects.of_result(word, result, audited(path, device, progress, driver_for)),))
    found = audited(path, device, progress, driver_for)
    known = owners(subjects.site_packages(path))
    for note in found.notes:
        progress(note)
    return Named((subjects.of_audit(word, found.audit, found.matrix, known),))


def _link(word: str, path: Path) -> Path:
    """The link of a variant's result, of any release, in this folder."""
    try:
        short = matrix.load().parse(word).variant.short
    except UsageError:
        if "/" in word or "." in word:
            raise absent(path) from None
        raise
    links = sorted(path for path in Path().glob("result-*") if path.name.endswith(f"-{short}"))
    if not links:
        raise MissingError(
            f"there is no result of {short} in this folder", hint=f"build it: vllm-variants build {short}"
        )
    if links[1:]:
        named = " and ".join(map(str, links[:2]))
        raise UsageError(f"{word} has several results here: {named}", hint=f"name one: {links[0]}")
    return links[0]


def _document(path: Path) -> Named:
    document = reading.document(path)
    kind = document.get("schema")
    if kind == documents.AUDIT:
        return Named((subjects.of_audit(path.name, document),))
    if kind == documents.AUDIT_MATRIX:
        return Named((subjects.of_matrix(path.name, document),))
    if kind == documents.AUDITS:
        with reading.expected(path, "no audits"):
            reports: Sequence[Any] = document["reports"]
            return Named(tuple(subjects.of_audit(_root(report), report) for report in reports))
    if kind == documents.BUILD:
        with reading.expected(path, "no outcomes of builds"):
            return Named(tuple(map(subjects.of_outcome, document["outcomes"])), batch=True)
    what = f"a document {json.dumps(kind)}" if kind else "no document of vllm-variants"
    raise InputError(
        f"{path} is {what}, of which there is no report",
        hint="name what build --json or audit --json printed; runs of checks go with --evidence",
    )


def _root(report: Any) -> str:
    return ", ".join(map(str, report["roots"])) if isinstance(report, dict) else ""
