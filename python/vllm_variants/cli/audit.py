"""`vllm-variants audit`: which images are in every library, and what a device would run of them."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vllm_variants import documents
from vllm_variants.cli.device import device
from vllm_variants.cli.options import ReleaseName, named_path
from vllm_variants.cli.output import Json, err, out, print_json, say, size, table
from vllm_variants.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from vllm_variants.audit import AuditReport, LibraryAudit
    from vllm_variants.audit.subject import Subject
    from vllm_variants.audit.why import Why
    from vllm_variants.model.capability import Capability


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A library, wheel, site-packages, result or store path.",
            show_default=False,
            parser=named_path,
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
    closure_from: Annotated[
        Path | None,
        typer.Option(
            "--closure-from",
            metavar="FILE",
            parser=named_path,
            help="The same, with its paths in FILE, one a line: nix-store is not asked.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail unless there is code, and the verdict is `pass`.")
    ] = False,
    derive: Annotated[
        bool, typer.Option("--derive", help="Print a release's expectations from its wheels, as TOML.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every CUDA image in libraries and say what runs on a device. Needs no GPU.

    Each PATH gets a report of its own. A result is judged for its own SM, anything else for --sm;
    where all are results, --sm judges them for another. Without either it is only listed.
    Exit code 5: code that should be there is missing, or a file is broken.
    """
    judging: dict[str, object] = {"--sm": sm, "--release": release, "--strict": strict}
    judging |= {"--closure": closure, "--closure-from": closure_from}
    if derive:
        _alone("--derive", {**judging, "--why": why, "--json": as_json})
        _derive(paths)
    elif why is not None:
        _alone("--why", judging)
        _why(paths, why, as_json)
    else:
        if closure and closure_from:
            raise UsageError("--closure goes without --closure-from", hint="leave out one of them")
        if closure_from and len(paths) != 1:
            raise UsageError("--closure-from goes with one PATH, whose closure it lists")
        _audit(_subjects(paths, sm, release, strict), closure, closure_from, strict, as_json)


def _alone(mode: str, options: Mapping[str, object]) -> None:
    """`UsageError` for an option that was given and means nothing to this mode."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise UsageError(f"{name} does not go with {mode}", hint=f"leave out {name}")


def _subjects(paths: list[Path], sm: str | None, release: str | None, strict: bool) -> tuple[Subject, ...]:
    from vllm_variants.audit.find import examined
    from vllm_variants.audit.subject import subjects
    from vllm_variants.model import matrix

    rows = matrix.load()
    capability = device(sm) if sm is not None else None
    if capability and not rows.knows(capability):
        say(f"note: no variant of the matrix is for {capability} or serves it; is it what you mean?")
    if release is not None:
        release = rows.release(release).name
    for path in paths:
        examined(path)
    found = subjects(paths, capability, release)
    for subject in found:
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
        if capability and capability != subject.capability:
            say(f"{subject.path} is a result, judged for its own {subject.capability}: --sm is for the rest")
        if release and release != subject.release:
            say(f"{subject.path} is a result, held to its own {subject.release}: --release is for the rest")
    return found


def _audit(
    subjects: tuple[Subject, ...], closure: bool, closure_from: Path | None, strict: bool, as_json: bool
) -> None:
    reports = []
    for subject in subjects:
        roots = _roots(subject.path, closure, closure_from)
        report = _report(subject, roots)
        reports.append(report)
        if not as_json:
            if len(subjects) > 1:
                out.print(f"{subject.path}:", markup=False)
            _show(report)
    if as_json:
        print_json(reports[0].as_dict() if len(reports) == 1 else _together(reports))
        for report in reports:
            if report.missing:  # the reason of the exit code, for a log that has no stdout
                say(f"missing: {report.missing}")
    if not all(_good(report, strict) for report in reports):
        raise typer.Exit(ExitCode.AUDIT)


def _roots(path: Path, closure: bool, closure_from: Path | None) -> list[Path]:
    from vllm_variants import audit as audits

    if closure:
        return audits.closure(path)
    if closure_from:
        listed = map(Path, closure_from.read_text(encoding="utf-8").splitlines())
        return list(dict.fromkeys([path, *listed]))
    return [path]


def _report(subject: Subject, roots: list[Path]) -> AuditReport:
    from vllm_variants import audit as audits
    from vllm_variants.audit.subject import expectations_for

    with err.status("reading …") as status:
        libraries = audits.collect(roots, subject.capability, lambda name: status.update(f"reading {name}"))
    expected, why_none = expectations_for(subject, libraries)
    if why_none:
        say(why_none)
    return audits.judge(tuple(map(str, roots)), libraries, subject.capability, expected)


def _good(report: AuditReport, strict: bool) -> bool:
    from vllm_variants.audit import Verdict

    return report.passed and (not strict or (report.verdict is Verdict.PASS and bool(report.libraries)))


def _together(reports: Sequence[AuditReport]) -> dict[str, object]:
    """Several reports as one JSON document; the verdict is the worst of those that were judged."""
    from vllm_variants.audit import Verdict

    order = list(Verdict)
    worst = max((report.verdict for report in reports if report.verdict), key=order.index, default=None)
    return {
        "schema": documents.AUDITS,
        "verdict": worst and str(worst),
        "reports": [report.as_dict() for report in reports],
    }


def _show(report: AuditReport) -> None:
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


def _why(paths: list[Path], sm: str, as_json: bool) -> None:
    from vllm_variants.audit.find import examined, sources
    from vllm_variants.audit.why import why
    from vllm_variants.fatbin.source import Malformed

    capability = device(sm)
    facts: list[dict[str, object]] = []
    problems = []

    def unreadable(name: str, reason: str) -> None:
        problems.append(name)
        say(f"{name}: cannot be read: {reason}")

    for path in paths:
        alone = stat.S_ISREG(examined(path).st_mode) and path.suffix != ".whl"
        for name, source in sources(path, unreadable):
            try:
                found = why(source, capability)
            except InputError as error:
                if alone:
                    raise
                if isinstance(error, Malformed):
                    unreadable(name, error.message)
                else:
                    say(f"{name}: passed over: it is no library")
                continue
            facts.append({"library": name, "sets": [f.as_dict() for f in found]})
            if found and not as_json:
                _show_why(name, capability, found)
    if as_json:
        print_json({"schema": documents.AUDIT_WHY, "device": str(capability), "libraries": facts})
    if problems:
        raise typer.Exit(ExitCode.AUDIT)


def _show_why(name: str, capability: Capability, found: Sequence[Why]) -> None:
    out.print(f"{name} on {capability.sm} (compute capability {capability})", markup=False)
    for each in found:
        chosen, fit = each.as_dict()["runs"] or "nothing", each.as_dict()["fit"]
        many = f"{each.containers} container{'s' if each.containers > 1 else ''}"
        out.print(f"  {many} → {chosen} ({fit})", markup=False)
        for image, reason in each.reasons:
            out.print(f"      {image:13} {reason}", markup=False)


def _derive(wheels: list[Path]) -> None:
    from vllm_variants.audit.derive import derive
    from vllm_variants.model import matrix

    devices = {variant.capability for variant in matrix.load().variants.values()}
    typer.echo(derive(wheels, devices), nl=False)
