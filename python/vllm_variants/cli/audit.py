"""`vllm-variants audit`: which images are in every library, and what a device would run of them."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_variants import documents
from vllm_variants.cli.options import Devices, Json, ReleaseName, path_option
from vllm_variants.cli.output import err, out, print_json, say
from vllm_variants.cli.rules import CommandLine, excludes, requires, rules
from vllm_variants.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from vllm_variants.audit import AuditReport
    from vllm_variants.audit.audited_path import AuditedPath
    from vllm_variants.model.capability import Capability


def _one_closure(line: CommandLine) -> None:
    paths: Any = line.values["paths"]
    if "--closure-from" in line.given and len(paths) != 1:
        raise UsageError(
            "--closure-from goes with one PATH, whose closure it lists", hint="audit the paths one by one"
        )


@rules(
    excludes("--derive", "--sm", "--why", "--release", "--strict", "--closure", "--closure-from", "--json"),
    excludes("--why", "--release", "--strict", "--closure", "--closure-from"),
    excludes("--closure", "--closure-from"),
    requires("--why", "--sm", hint="name the device: --sm sm90"),
    _one_closure,
)
def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A library, wheel, site-packages, result or store path.",
            show_default=False,
            parser=Path,
        ),
    ],
    sm: Devices = None,
    why: Annotated[
        bool, typer.Option("--why", help="Say which images the devices of --sm run, and why.")
    ] = False,
    release: ReleaseName = None,
    closure: Annotated[
        bool, typer.Option("--closure", help="With all that the store path needs at run time.")
    ] = False,
    closure_from: Annotated[
        Path | None,
        path_option(
            "--closure-from",
            metavar="FILE",
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
    """Read every CUDA image in libraries and say what runs on the devices of --sm. Needs no GPU.

    Each PATH gets a report of its own. A result is judged for its own SM, anything else for --sm;
    where all are results, --sm judges them for others. Without either it is only listed.
    Exit code 5: code that should be there is missing, or a file is broken.
    """
    if derive:
        _derive(paths)
    elif why:
        _why(paths, sm or [], as_json)
    else:
        _audit(_subjects(paths, sm or [], release, strict), closure, closure_from, strict, as_json)


def _subjects(
    paths: Sequence[Path], devices: Sequence[Capability], release: str | None, strict: bool
) -> list[AuditedPath]:
    """What is judged: every path for every device, those of one path together."""
    from vllm_variants.audit.audited_path import audited_paths
    from vllm_variants.audit.find import examined
    from vllm_variants.model import matrix

    rows = matrix.load()
    for device in devices:
        if not rows.knows(device):
            say(f"note: no variant of the matrix is for {device} or serves it; is it what you mean?")
    if release is not None:
        release = rows.release(release).name
    for path in paths:
        examined(path)
    judged: list[AuditedPath] = []
    requested: Sequence[Capability | None] = devices or [None]
    for capability in requested:
        for subject in audited_paths(paths, capability, release):
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


def _audit(
    subjects: Sequence[AuditedPath], closure: bool, closure_from: Path | None, strict: bool, as_json: bool
) -> None:
    from vllm_variants.cli import audit_display

    reports = []
    for subject in subjects:
        report = _report(subject, _roots(subject.path, closure, closure_from))
        reports.append(report)
        if not as_json:
            if len(subjects) > 1:
                out.print(f"{subject.path}:", markup=False)
            audit_display.show(report)
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


def _report(subject: AuditedPath, roots: list[Path]) -> AuditReport:
    from vllm_variants import audit as audits
    from vllm_variants.audit.audited_path import expectations_for

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


def _why(paths: Sequence[Path], devices: Sequence[Capability], as_json: bool) -> None:
    from vllm_variants.audit.find import examined, sources
    from vllm_variants.audit.why import why
    from vllm_variants.cli import audit_display
    from vllm_variants.fatbin.source import Malformed

    facts: list[dict[str, object]] = []
    problems = []

    def unreadable(name: str, reason: str) -> None:
        problems.append(name)
        say(f"{name}: cannot be read: {reason}")

    for path in paths:
        alone = stat.S_ISREG(examined(path).st_mode) and path.suffix != ".whl"
        for name, source in sources(path, unreadable):
            try:
                choices = {device: why(source, device) for device in devices}
            except InputError as error:
                if alone:
                    raise
                if isinstance(error, Malformed):
                    unreadable(name, error.message)
                else:
                    say(f"{name}: passed over: it is no library")
                continue
            for device, sets in choices.items():
                facts.append(
                    {"library": name, "device": str(device), "sets": [each.as_dict() for each in sets]}
                )
                if sets and not as_json:
                    audit_display.show_why(name, device, sets)
    if as_json:
        print_json({"schema": documents.AUDIT_WHY, "libraries": facts})
    if problems:
        raise typer.Exit(ExitCode.AUDIT)


def _derive(wheels: list[Path]) -> None:
    from vllm_variants.audit.derive import derive
    from vllm_variants.model import matrix

    devices = {variant.capability for variant in matrix.load().every_variant}
    typer.echo(derive(wheels, devices), nl=False)
