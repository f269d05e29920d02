"""How `vllm-variants audit` works: what is read, for which devices, what is printed and written."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_variants import documents
from vllm_variants.cli.output import err, out, print_json, say
from vllm_variants.errors import UsageError

if TYPE_CHECKING:
    from vllm_variants.audit import AuditReport
    from vllm_variants.audit.audited_path import AuditedPath
    from vllm_variants.audit.targets.found import Found
    from vllm_variants.cli.audit_options import ReadOptions
    from vllm_variants.machine.gpus import Machine
    from vllm_variants.model.capability import Capability
    from vllm_variants.model.variants import Matrix


@dataclass(frozen=True)
class AuditRequest:
    """What was asked for on the command line: paths, what of them is read, devices, driver and release."""

    paths: tuple[Path, ...]
    read: ReadOptions
    devices: tuple[Capability, ...]
    driver: str | None
    release: str | None

    def named(self) -> tuple[Path, ...]:
        """The paths to audit: those that were named, else the environment that somebody works in."""
        from vllm_variants.audit.targets import environments

        if self.read.python is not None:
            return (environments.interpreter(self.read.python),)
        return self.paths or (environments.active(os.environ, Path.cwd()),)


def audit(request: AuditRequest, strict: bool, as_json: bool) -> list[AuditReport]:
    """Read each path once, judge it for its devices, print the reports; all of them."""
    from vllm_variants.audit.subject import report_on
    from vllm_variants.cli import audit_display
    from vllm_variants.machine import gpus
    from vllm_variants.model import matrix

    rows, machine = matrix.load(), gpus.machine()
    release = rows.release(request.release).name if request.release is not None else None
    read: dict[Path, Found] = {}
    subjects = _subjects(request, rows, machine, release, strict)
    reports = []
    for subject in subjects:
        if subject.path not in read:
            read[subject.path] = _read(request, subject.path)
        driver = request.driver or machine.driver_for(subject.capability)
        report, why_unheld = report_on(subject, read[subject.path], driver, rows)
        if why_unheld:
            say(why_unheld)
        reports.append(report)
        if not as_json:
            if len(subjects) > 1:
                device = f" on {subject.capability.sm}" if subject.capability else ""
                out.print(f"{subject.path}{device}:")
            audit_display.show(report)
    if as_json:
        print_json(reports[0].as_dict() if len(reports) == 1 else together(reports))
        for report in reports:
            if report.missing:  # the reason of the exit code, for a log that has no stdout
                say(f"missing: {report.missing}")
    return reports


def _subjects(
    request: AuditRequest, rows: Matrix, machine: Machine, release: str | None, strict: bool
) -> list[AuditedPath]:
    """What is judged: every path for every device, those of one path together."""
    from dataclasses import replace

    from vllm_variants.audit.audited_path import audited_paths
    from vllm_variants.audit.find import examined
    from vllm_variants.audit.targets.found import Kind

    for device in request.devices:
        if not rows.knows(device):
            say(f"note: no variant of the matrix is for {device} or serves it; is it what you mean?")
    paths = request.named()
    if request.read.python is None:
        for path in paths:
            examined(path)
    here = tuple(dict.fromkeys(gpu.capability for gpu in machine.gpus))
    judged: list[AuditedPath] = []
    requested: Sequence[Capability | None] = request.devices or [None]
    for capability in requested:
        for subject in audited_paths(paths, capability, release, here):
            if request.read.python is not None:  # what it imports from, not the program itself
                subject = replace(subject, kind=Kind.ENVIRONMENT)
            if subject not in judged:
                _require_judgeable(subject, release, strict)
                _note_own(subject, capability, release)
                judged.append(subject)
    return sorted(judged, key=lambda subject: paths.index(subject.path))


def _require_judgeable(subject: AuditedPath, release: str | None, strict: bool) -> None:
    """`UsageError` where --strict or --release needs a device or a whole release, and has none."""
    if subject.capability is None and (strict or release):
        option = "--strict" if strict else "--release"
        raise UsageError(
            f"{option} judges, and for which device {subject.path} does not say", hint="add --sm SM"
        )
    if release and not subject.whole:
        raise UsageError(
            f"--release looks for all of a release, and {subject.path} is a single file",
            hint="name the wheel or the directory that it lies in, or leave out --release",
        )


def _note_own(subject: AuditedPath, device: Capability | None, release: str | None) -> None:
    """Say where a result is judged for its own SM and release rather than for those that were given."""
    if device and device != subject.capability:
        say(f"{subject.path} is a result, judged for its own {subject.capability}: --sm is for the rest")
    if release and release != subject.release:
        say(f"{subject.path} is a result, held to its own {subject.release}: --release is for the rest")


def _read(request: AuditRequest, path: Path) -> Found:
    from vllm_variants import audit as audits
    from vllm_variants.audit.targets import environments, identify
    from vllm_variants.audit.targets.found import Found, Kind

    with err.status("reading …") as status:

        def progress(name: str) -> None:
            status.update(f"reading {name}")

        if request.read.python is not None:
            found = environments.read_python(path, progress, request.read.fresh)
        elif request.read.closure or request.read.closure_from:
            roots = _closure(request, path)
            found = Found(
                Kind.STORE_PATH, audits.summaries(roots, progress), None, (), tuple(map(str, roots))
            )
        else:
            found = identify.read(path, progress, fresh=request.read.fresh, remember=request.read.remember)
    for note in found.notes:
        say(f"note: {note}")
    return found


def _closure(request: AuditRequest, path: Path) -> list[Path]:
    from vllm_variants import audit as audits

    if request.read.closure_from is None:
        return audits.closure(path)
    listed = map(Path, request.read.closure_from.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys([path, *listed]))


def show_matrix(request: AuditRequest, as_json: bool) -> None:
    """Print the matrix of one path."""
    from vllm_variants.audit.audited_path import audited_paths
    from vllm_variants.audit.subject import matrix_on
    from vllm_variants.cli import audit_matrix
    from vllm_variants.model import matrix

    rows = matrix.load()
    release = rows.release(request.release).name if request.release is not None else None
    (path,) = request.named()
    (subject,) = audited_paths([path], None, release)
    shown = matrix_on(subject, _read(request, path), request.driver, rows)
    if as_json:
        print_json(shown.as_dict())
    else:
        audit_matrix.show(shown)


def good(reports: Sequence[AuditReport], strict: bool, fail_on: Collection[str]) -> bool:
    """Whether the exit code is 0: see docs/audit.md, "Exit codes"."""
    return all(_good(report, strict) and not (failures(report) & set(fail_on)) for report in reports)


def _good(report: AuditReport, strict: bool) -> bool:
    from vllm_variants.audit import Verdict

    if strict and (report.verdict is not Verdict.PASS or not report.libraries):
        return False
    stopped = report.answer is not None and report.answer.word == "no" and bool(report.libraries)
    return report.passed and not stopped


def failures(report: AuditReport) -> set[str]:
    """What of `missing`, `jit`, `foreign` and `driver` is so in a report."""
    found = {str(finding.verdict) for finding in report.findings}
    found |= {"missing" for feature in report.features if feature.state == "missing"}
    if report.capability and not report.libraries:
        found.add("missing")
    return found


def together(reports: Sequence[AuditReport]) -> dict[str, object]:
    """Several reports as one JSON document; the verdict is the worst of those that were judged."""
    from vllm_variants.audit import Verdict

    order = list(Verdict)
    worst = max((report.verdict for report in reports if report.verdict), key=order.index, default=None)
    return {
        "schema": documents.AUDITS,
        "verdict": worst and str(worst),
        "reports": [report.as_dict() for report in reports],
    }


def write_reports(reports: Sequence[AuditReport], sarif: Path | None, junit: Path | None) -> None:
    """Write what continuous integration reads."""
    import json

    from vllm_variants.audit import ci
    from vllm_variants.system.reporting import write

    if sarif:
        write(sarif, json.dumps(ci.sarif(reports), indent=2, ensure_ascii=False) + "\n")
    if junit:
        write(junit, ci.junit_document(reports))
