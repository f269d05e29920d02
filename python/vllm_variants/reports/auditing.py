"""Audit a path for a report: for the device that it is for, and for every SM, in one reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vllm_variants.audit.audited_path import audited_paths
from vllm_variants.audit.subject import matrix_on, report_on
from vllm_variants.audit.targets import identify
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability

DriverFor = Callable[[Capability | None], str | None]
"""The driver that a device would run on; None: not known."""


def no_driver(device: Capability | None) -> None:
    """Where nobody knows of a driver."""


class Audited(NamedTuple):
    """Documents of `audit --json` and of `audit --all-sms --json`; `notes` on what was read and what not."""

    audit: dict[str, Any]
    matrix: dict[str, Any]
    notes: tuple[str, ...] = ()


def audited(
    path: Path,
    device: Capability | None,
    progress: Callable[[str], None],
    driver_for: DriverFor = no_driver,
) -> Audited:
    """Read whatever a path is, and judge it.

    A result is judged for its own device unless another is given. Raises `MissingError` or `InputError` where
    the path cannot be read, `ResourceError` where the wheels of a lock cannot be reached.
    """
    (subject,) = audited_paths([path], device, None)
    found, rows = identify.read(path, progress), matrix.load()
    driver = driver_for(subject.capability)
    report, _ = report_on(subject, found, driver, rows)
    every = matrix_on(subject, found, driver, rows)
    return Audited(report.as_dict(), every.as_dict(), found.notes)
