"""What `vllm-variants audit` prints for people: a table of libraries, a verdict, reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from vllm_variants.cli.output import out, say, size, table

if TYPE_CHECKING:
    from vllm_variants.audit import AuditReport, LibraryAudit
    from vllm_variants.audit.why import Why
    from vllm_variants.model.capability import Capability


def show(report: AuditReport) -> None:
    """Print a report: its libraries, the verdict and what led to it."""
    if not report.libraries:
        say("no device code found")
    else:
        _show_libraries(report)
    _verdict(report)


def _show_libraries(report: AuditReport) -> None:
    judged = report.capability is not None
    columns = ["library", "device code", "containers", "targets"]
    columns += ["machine code", "JIT", "nothing", "foreign"] if judged else []
    rows = table(*columns)
    for column in rows.columns:
        column.overflow = "fold"
    for column in (rows.columns[1], rows.columns[2], *rows.columns[4:]):
        column.no_wrap = True
    for library in sorted(report.libraries, key=lambda library: -library.device_bytes):
        rows.add_row(*_row(library, judged))
    (out if out.is_terminal else Console(width=240, highlight=False)).print(rows)
    for library in report.libraries:
        for name, code in library.scattered.items():
            foreign = f", {size(code.foreign)} of them foreign" if judged else ""
            say(f"{library.path}: {code.containers} containers, {size(code.bytes)}{foreign}, in {name}")
        if library.stray:
            say(f"{library.path}: {library.stray} stray for sm_52 alone, the compiler's default target")
        if library.unknown:
            count = len(library.unknown)
            say(f"{library.path}: {count} images of unknown kind or flags, {library.unknown[0]}")


def _row(library: LibraryAudit, judged: bool) -> list[str]:
    from vllm_variants.model.capability import Fit

    targets: dict[str, int] = {}
    for (kind, target), held in sorted(library.held.items(), key=lambda item: (item[0][0], item[0][1])):
        name = f"{target}" if kind == "cubin" else f"{kind} {target}"
        targets[name] = held.images
    listed = " ".join(f"{name.replace(' ', '·')}:{count}" for name, count in targets.items())
    row = [library.path, size(library.device_bytes), str(library.containers), listed]
    if judged:
        nothing = library.fits[Fit.NONE]
        row += [str(library.runs), str(library.fits[Fit.JIT]), str(nothing), size(library.foreign)]
    return row


def _verdict(report: AuditReport) -> None:
    if report.capability is None:
        _findings(report)
        return
    totals = report.as_dict()["totals"]
    held_to = f", held to vLLM {report.release}" if report.release else ""
    out.print(f"verdict for {report.capability.sm}{held_to}: {report.verdict}", markup=False)
    out.print(f"  {size(totals['device'])} of device code, {size(totals['foreign'])} can never run there")
    if totals["jit_containers"]:
        cost = f"{size(totals['jit_bytes'])} of PTX"
        cost += f", driver ≥ {totals['jit_driver']}" if totals["jit_driver"] else ""
        out.print(f"  containers that run only through the driver's JIT: {totals['jit_containers']}, {cost}")
    _findings(report)


def _findings(report: AuditReport) -> None:
    for finding in report.findings:
        out.print(f"  {finding.verdict}: {finding.library}: {finding.what}", markup=False)


def show_why(name: str, capability: Capability, sets: Sequence[Why]) -> None:
    """Print which image of each set of containers of a library a device runs, and why not the others."""
    out.print(f"{name} on {capability.sm} (compute capability {capability})", markup=False)
    for choice in sets:
        chosen, fit = choice.as_dict()["runs"] or "nothing", choice.as_dict()["fit"]
        containers = f"{choice.containers} container{'s' if choice.containers > 1 else ''}"
        out.print(f"  {containers} → {chosen} ({fit})", markup=False)
        for image, reason in choice.reasons:
            out.print(f"      {image:13} {reason}", markup=False)
