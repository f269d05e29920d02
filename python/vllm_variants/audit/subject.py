"""The report on a path that was read: what it is held to, what it would run on, and what that comes to."""

from __future__ import annotations

from dataclasses import replace

from vllm_variants.audit.audited_path import AuditedPath, expectations_for
from vllm_variants.audit.every_sm import SmMatrix
from vllm_variants.audit.library import judged
from vllm_variants.audit.report import About, AuditReport, judge
from vllm_variants.audit.sms import every_device, variant_for
from vllm_variants.audit.targets.found import Found
from vllm_variants.model.variants import Matrix


def report_on(
    subject: AuditedPath, found: Found, driver: str | None, rows: Matrix
) -> tuple[AuditReport, str]:
    """The report on what was found at a path, for the subject's device and on a driver (None: not known).

    With a sentence on why nothing is expected of it; empty where none is needed (see `expectations_for`).
    """
    subject = _of_release(subject, found)
    device = subject.capability
    libraries = tuple(judged(library, device) for library in found.libraries)
    expected, why_none = expectations_for(subject, libraries)
    machine = next((library.machine for library in libraries if library.machine), "x86_64")
    release = rows.releases.get(subject.release or "")
    variant = variant_for(rows, device, machine, release) if device else None
    about = About(
        str(found.kind),
        driver,
        variant.short if variant else None,
        release.name if release else None,
        subject.manifest is not None,
    )
    return judge(_roots(subject, found), libraries, device, expected, about), why_none


def matrix_on(subject: AuditedPath, found: Found, driver: str | None, rows: Matrix) -> SmMatrix:
    """What was found at a path, for every device that the matrix of variants knows."""
    subject = _of_release(subject, found)
    about = About(str(found.kind), driver, result=subject.manifest is not None)
    return SmMatrix(_roots(subject, found), every_device(rows), found.libraries, subject.release or "", about)


def _of_release(subject: AuditedPath, found: Found) -> AuditedPath:
    """The subject, with the release of vLLM that was found in it where nothing else names one."""
    return replace(subject, release=found.release) if subject.release is None else subject


def _roots(subject: AuditedPath, found: Found) -> tuple[str, ...]:
    return found.roots or (str(subject.path),)
