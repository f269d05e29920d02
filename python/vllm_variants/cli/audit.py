"""`vllm-variants audit`: will it run on this card? Of libraries, environments, wheels, locks and images."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli.audit_options import RULES, JudgeOptions, ReadOptions, ReportOptions
from vllm_variants.cli.command import with_groups
from vllm_variants.cli.options import Json
from vllm_variants.cli.output import print_json, say
from vllm_variants.cli.rules import rules
from vllm_variants.errors import ExitCode, InputError

if TYPE_CHECKING:
    from vllm_variants.model.capability import Capability


@rules(*RULES)
@with_groups
def audit(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH",
            help="An environment, wheelhouse, requirements lock, image (OCI layout or archive), result, store"
            " path, wheel, folder or library. The active environment, or .venv, if absent.",
            show_default=False,
            parser=Path,
        ),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Say which images the devices of --sm run, and why.")
    ] = False,
    derive: Annotated[
        bool, typer.Option("--derive", help="Print a release's expectations from its wheels, as TOML.")
    ] = False,
    as_json: Json = False,
    *,
    read: ReadOptions,
    judge: JudgeOptions,
    reports: ReportOptions,
) -> None:
    """Will it run on this card? Read every CUDA image there is, and say what runs, waits or is missing.

    Judged for the devices of --sm, else for this machine's GPUs; a result for its own SM. Where neither is,
    code is only listed. Needs no GPU. Exit code 5: code that should be there is missing, nothing of what is
    needed runs, the driver is too old, or a file cannot be read; and what --fail-on names.
    """
    if derive:
        _derive(paths or [])
    elif why:
        _why(paths or [], judge.sm or [], as_json)
    else:
        _audit(tuple(paths or ()), read, judge, reports, as_json)


def _audit(
    paths: tuple[Path, ...], read: ReadOptions, judge: JudgeOptions, reports: ReportOptions, as_json: bool
) -> None:
    from vllm_variants.cli import auditing

    request = auditing.AuditRequest(paths, read, tuple(judge.sm or ()), judge.driver, judge.release)
    if judge.all_sms:
        auditing.show_matrix(request, as_json)
        return
    found = auditing.audit(request, judge.strict, as_json)
    auditing.write_reports(found, reports.sarif, reports.junit)
    if not auditing.good(found, judge.strict, {each.value for each in judge.fail_on or ()}):
        raise typer.Exit(ExitCode.AUDIT)


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
