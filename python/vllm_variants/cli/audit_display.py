"""What `vllm-variants audit` prints for people: the answer, features, libraries, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from vllm_variants.cli.output import out, say, size, table

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_variants.audit import AuditReport, LibraryAudit
    from vllm_variants.audit.judging import JudgedFeature
    from vllm_variants.audit.why import Why
    from vllm_variants.model.capability import Capability

WIDTH = 100
"""Columns of the widest table."""
_SHOWN = {"runs": "runs", "waits": "waits", "driver": "driver too old", "missing": "NOTHING RUNS"}


def show(report: AuditReport) -> None:
    """Print a report: the answer first, then what led to it, then what to do."""
    if report.answer:
        out.print(report.answer.sentence)
    if not report.libraries:
        say("no device code found")
    else:
        _show_features(report)
        _show_libraries(report)
    _verdict(report)
    for advice in report.advice:
        command = f": {advice.command}" if advice.command else ""
        out.print(f"  → {advice.what}{command}")


def short(path: str) -> str:
    """A library's path from its package on: what is above site-packages says nothing."""
    for folder in ("/site-packages/", "/dist-packages/"):
        path = path.rpartition(folder)[2]
    return path


def narrow() -> Console:
    """Where tables go: never wider than `WIDTH`."""
    if out.is_terminal and out.width <= WIDTH:
        return out
    return Console(width=WIDTH, highlight=False, markup=False)


def rows_of(first: str, *others: str) -> Table:
    """An empty table whose first column gives way to the others."""
    rows = table(first, *others)
    rows.columns[0].overflow = "fold"
    for column in rows.columns[1:]:
        column.no_wrap = True
    return rows


def _show_features(report: AuditReport) -> None:
    judged = [f for f in report.features if str(f.state) != "unsupported"]
    if not judged:
        return
    from vllm_variants.audit.answer import duration

    rows = rows_of("feature", "what for", "", "machine code", "JIT", "first calls")
    rows.columns[1].no_wrap, rows.columns[1].overflow = False, "fold"
    for feature in sorted(judged, key=_badness):
        counts = feature.counts
        waits = counts.containers["jit"]  # type: ignore[index]
        runs = counts.total - waits - counts.containers["none"]  # type: ignore[index]
        seconds = (duration(counts.jit_seconds) if counts.timed else "not known") if waits else ""
        says = "" if feature.use.feature.key.startswith("package:") else feature.use.feature.says
        rows.add_row(feature.name, says, _SHOWN[str(feature.state)], str(runs), str(waits or ""), seconds)
    narrow().print(rows)
    unsupported = [f.name for f in report.features if str(f.state) == "unsupported"]
    if unsupported and report.capability:
        out.print(f"not made for {report.capability.sm}: {', '.join(unsupported)}")
    out.print()


def _badness(feature: JudgedFeature) -> tuple[int, float]:
    order = ("missing", "driver", "waits", "runs")
    return order.index(str(feature.state)), -feature.counts.jit_seconds


def _show_libraries(report: AuditReport) -> None:
    judged = report.capability is not None
    columns = (
        ("code", "containers", "runs", "JIT", "nothing", "foreign")
        if judged
        else ("code", "containers", "for")
    )
    rows = rows_of("library", *columns)
    if not judged:
        rows.columns[3].no_wrap = False
    for library in sorted(report.libraries, key=lambda library: -library.device_bytes):
        if library.containers or library.scattered:
            rows.add_row(*_row(library, judged))
    narrow().print(rows)
    for library in report.libraries:
        for name, code in library.scattered.items():
            foreign = f", {size(code.foreign)} of them foreign" if judged else ""
            say(f"{library.path}: {code.containers} containers, {size(code.bytes)}{foreign}, in {name}")
        if library.stray:
            say(f"{library.path}: {library.stray} containers hold code for sm_52 alone, nvcc's default")
        if library.unknown:
            count = len(library.unknown)
            say(f"{library.path}: {count} images of unknown kind or flags, {library.unknown[0]}")


def _row(library: LibraryAudit, judged: bool) -> list[str]:
    from vllm_variants.model.capability import Fit

    row = [short(library.path), size(library.device_bytes), str(library.containers)]
    if judged:
        stubs = _stubs(library)
        nothing = library.fits[Fit.NONE] - stubs
        row += [
            str(library.runs),
            str(library.fits[Fit.JIT] or ""),
            str(nothing or ""),
            size(library.foreign),
        ]
    else:
        row.append(targets(library))
    return row


def _stubs(library: LibraryAudit) -> int:
    """Containers that hold stubs alone: their code was dropped, so they are not listed as foreign code."""
    held = library.summary.containers if library.summary else []
    return sum(bool(each.stubs) and not each.images for each in held)


def targets(library: LibraryAudit) -> str:
    """What its images are for, each target once: `7.0 8.0 9.0a, PTX 8.0`."""
    kinds: dict[str, list[str]] = {}
    for kind, target in sorted(library.images, key=lambda image: (image[0], image[1])):
        kinds.setdefault(kind, []).append(str(target))
    names = {"cubin": "", "ptx": "PTX "}
    return ", ".join(f"{names.get(kind, f'{kind} ')}{' '.join(found)}" for kind, found in kinds.items())


def _verdict(report: AuditReport) -> None:
    if report.capability is None:
        _findings(report)
        return
    totals = report.totals
    held_to = f", held to vLLM {report.release}" if report.release else ""
    driver = f", on driver {report.about.driver}" if report.about.driver else ""
    out.print(f"verdict for {report.capability.sm}{held_to}{driver}: {report.verdict}")
    out.print(f"  {size(totals['device'])} of device code, {size(totals['foreign'])} can never run there")
    if totals["jit_containers"]:
        cost = f"{size(totals['jit_bytes'])} of PTX"
        cost += f", driver ≥ {totals['jit_driver']}" if totals["jit_driver"] else ""
        out.print(f"  containers that run only through the driver's JIT: {totals['jit_containers']}, {cost}")
    _findings(report)


def _findings(report: AuditReport) -> None:
    foreign = [finding for finding in report.findings if str(finding.verdict) == "foreign"]
    for finding in report.findings:
        if finding not in foreign:
            out.print(f"  {finding.verdict}: {short(finding.library)}: {finding.what}")
    if foreign and report.capability:
        most = sorted(report.libraries, key=lambda library: -library.foreign)[: min(3, len(foreign))]
        named = ", ".join(f"{short(library.path)} {size(library.foreign)}" for library in most)
        total = size(sum(library.foreign for library in report.libraries))
        out.print(
            f"  foreign: {len(foreign)} libraries hold {total} that can never run on {report.capability.sm}:"
            f" {named}{', …' if len(foreign) > len(most) else ''}",
        )


def show_why(name: str, capability: Capability, sets: Sequence[Why]) -> None:
    """Print which image of each set of containers of a library a device runs, and why not the others."""
    out.print(f"{name} on {capability.sm} (compute capability {capability})")
    for choice in sets:
        chosen, fit = choice.as_dict()["runs"] or "nothing", choice.as_dict()["fit"]
        containers = f"{choice.containers} container{'s' if choice.containers > 1 else ''}"
        out.print(f"  {containers} → {chosen} ({fit})")
        for image, reason in choice.reasons:
            out.print(f"      {image:13} {reason}")
