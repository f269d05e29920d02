"""`vllm-variants audit`: which images are in every library, and what a device would run of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vllm_variants.cli.device import device
from vllm_variants.cli.options import ReleaseName
from vllm_variants.cli.output import Json, err, out, print_json, say, size, table
from vllm_variants.errors import ExitCode

if TYPE_CHECKING:
    from vllm_variants.audit import AuditReport, LibraryAudit


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A library, wheel, site-packages, result or store path.",
            show_default=False,
        ),
    ],
    sm: Annotated[
        str | None,
        typer.Option("--sm", metavar="SM", help="Judge for this device: sm90, 9.0 or a GPU's name."),
    ] = None,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="SM", help="Say which images this device runs, and why."),
    ] = None,
    release: ReleaseName = None,
    closure: Annotated[
        bool, typer.Option("--closure", help="With all that the store path needs at run time.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail unless the verdict is `pass`.")] = False,
    derive: Annotated[
        bool, typer.Option("--derive", help="Print a release's expectations from its wheels, as TOML.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every CUDA image in libraries and say what runs on a device. Needs no GPU.

    A result is judged for its own SM, anything else for --sm; without either it is only listed.
    Exit code 5: code that should be there is missing, or a file is broken.
    """
    if derive:
        _derive(paths)
    elif why:
        _why(paths, why, as_json)
    else:
        _audit(paths, sm, release, closure, strict, as_json)


def _audit(
    paths: list[Path], sm: str | None, release: str | None, closure: bool, strict: bool, as_json: bool
) -> None:
    from vllm_variants import audit as audits
    from vllm_variants.audit import subject

    capability = device(sm) if sm else subject.device_of(paths)
    roots = [member for path in paths for member in audits.closure(path)] if closure else paths
    with err.status("reading …") as status:
        libraries = audits.collect(roots, capability, lambda name: status.update(f"reading {name}"))
    expected = subject.expectations_for(paths, libraries, release) if capability else None
    report = audits.judge(tuple(map(str, paths)), libraries, capability, expected)
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)
    if not report.passed or (strict and report.verdict not in (None, audits.Verdict.PASS)):
        raise typer.Exit(ExitCode.AUDIT)


def _show(report: AuditReport) -> None:
    if not report.libraries:
        say("no device code found")
        return
    judged = report.capability is not None
    columns = ["library", "device code", "containers", "targets"]
    columns += ["machine code", "JIT", "nothing", "foreign"] if judged else []
    rows = table(*columns)
    for column in rows.columns:
        column.overflow = "fold"
    for column in (rows.columns[1], rows.columns[2], *rows.columns[4:]):
        column.no_wrap = True
    for library in sorted(report.libraries, key=lambda each: -each.device_bytes):
        rows.add_row(*_row(library, judged))
    (out if out.is_terminal else Console(width=240, highlight=False)).print(rows)
    for library in report.libraries:
        for name, found in library.scattered.items():
            foreign = f", {size(found.foreign)} of them foreign" if judged else ""
            say(f"{library.path}: {found.containers} containers, {size(found.bytes)}{foreign}, in {name}")
        if library.stray:
            say(f"{library.path}: {library.stray} stray for sm_52 alone, the compiler's default target")
        if library.unknown:
            count = len(library.unknown)
            say(f"{library.path}: {count} images of unknown kind or flags, {library.unknown[0]}")
    _verdict(report)


def _row(library: LibraryAudit, judged: bool) -> list[str]:
    from vllm_variants.capability import Fit

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
        return
    totals = report.as_dict()["totals"]
    held_to = f", held to vLLM {report.release}" if report.release else ""
    out.print(f"verdict for {report.capability.sm}{held_to}: {report.verdict}", markup=False)
    out.print(f"  {size(totals['device'])} of device code, {size(totals['foreign'])} can never run there")
    if totals["jit_containers"]:
        cost = f"{size(totals['jit_bytes'])} of PTX"
        cost += f", driver ≥ {totals['jit_driver']}" if totals["jit_driver"] else ""
        out.print(f"  containers that run only through the driver's JIT: {totals['jit_containers']}, {cost}")
    for finding in report.findings:
        out.print(f"  {finding.verdict}: {finding.library}: {finding.what}", markup=False)


def _why(paths: list[Path], sm: str, as_json: bool) -> None:
    from vllm_variants.audit.find import sources
    from vllm_variants.audit.why import why

    capability = device(sm)
    facts = []
    for path in paths:
        for name, source in sources(path):
            found = why(source, capability)
            facts.append({"library": name, "device": str(capability), "sets": [f.as_dict() for f in found]})
            if as_json or not found:
                continue
            out.print(f"{name} on {capability.sm} (compute capability {capability})", markup=False)
            for each in found:
                chosen = each.as_dict()["runs"] or "nothing"
                fit = each.as_dict()["fit"]
                many = f"{each.containers} container{'s' if each.containers > 1 else ''}"
                out.print(f"  {many} → {chosen} ({fit})", markup=False)
                for image, reason in each.reasons:
                    out.print(f"      {image:13} {reason}", markup=False)
    if as_json:
        print_json(facts)


def _derive(wheels: list[Path]) -> None:
    from vllm_variants import matrix
    from vllm_variants.audit.derive import derive

    devices = {variant.capability for variant in matrix.load().variants.values()}
    typer.echo(derive(wheels, devices), nl=False)
