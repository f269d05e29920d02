"""Audit a path for a report: for the device that it is for, and for every SM, in one reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vllm_variants import audit as audits
from vllm_variants.audit.audited_path import audited_paths, expectations_for
from vllm_variants.audit.every_sm import SmMatrix
from vllm_variants.audit.library import judged
from vllm_variants.audit.report import About
from vllm_variants.audit.sms import every_device
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability


class Audited(NamedTuple):
    """Documents of `audit --json` and of `audit --all-sms --json`."""

    audit: dict[str, Any]
    matrix: dict[str, Any]


def audited(path: Path, device: Capability | None, progress: Callable[[str], None]) -> Audited:
    """Read every library at a path, and judge it.

    A result is judged for its own device unless another is given. Raises `MissingError` or `InputError` where
    the path cannot be read.
    """
    (subject,) = audited_paths([path], device, None)
    summaries = audits.summaries([path], progress)
    libraries = tuple(judged(summary, subject.capability) for summary in summaries)
    expected, _ = expectations_for(subject, libraries)
    own = subject.manifest
    about = About(kind="result", variant=own.short, result=True) if own else About()
    report = audits.judge((str(path),), libraries, subject.capability, expected, about)
    every = SmMatrix((str(path),), every_device(matrix.load()), summaries, subject.release or "", about)
    return Audited(report.as_dict(), every.as_dict())
