"""`vllm-variants audit`: will it run on this card? Of libraries, environments, wheels, locks and images."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_variants import documents
from vllm_variants.cli.options import Devices, DriverVersion, Json, ReleaseName, path_option
from vllm_variants.cli.output import print_json, say
from vllm_variants.cli.rules import CommandLine, distinct_files, excludes, requires, rules
from vllm_variants.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from vllm_variants.model.capability import Capability


class FailOn(StrEnum):
    """What may make the exit code 5."""

    MISSING = "missing"
    JIT = "jit"
    FOREIGN = "foreign"
    DRIVER = "driver"


def _one_closure(line: CommandLine) -> None:
    paths: Any = line.values["paths"]
    if "--closure-from" in line.given and len(paths or ()) != 1:
        raise UsageError(
            "--closure-from goes with one PATH, whose closure it lists", hint="audit the paths one by one"
        )


def _one_matrix(line: CommandLine) -> None:
    paths: Any = line.values["paths"]
    if "--all-sms" in line.given and len(paths or ()) > 1:
        raise UsageError("--all-sms shows one PATH", hint="look at the paths one by one")


def _named(line: CommandLine) -> None:
    paths: Any = line.values["paths"]
    for option in ("--derive", "--why", "--closure"):
        if option in line.given and not paths:
            raise UsageError(f"{option} needs a PATH", hint="name a library, a wheel or a directory")


@rules(
    excludes("--derive", "--sm", "--why", "--release", "--strict", "--closure", "--closure-from", "--json"),
    excludes("--why", "--release", "--strict", "--closure", "--closure-from"),
    excludes("--all-sms", "--sm", "--why", "--derive", "--strict", "--fail-on", "--sarif", "--junit"),
    excludes("--closure", "--closure-from"),
    excludes("--remember", "--python", "--closure", "--closure-from", "--why", "--derive"),
    excludes("--python", "PATH", "--closure", "--closure-from", "--why", "--derive"),
    requires("--why", "--sm", hint="name the device: --sm sm90"),
    distinct_files("--sarif", "--junit"),
    _one_closure,
    _one_matrix,
    _named,
)
def audit(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="An environment, wheelhouse, requirements lock, image (OCI layout or archive), result, store"
            " path, wheel, folder or library. The active environment, or .venv, if absent.",
            show_default=False,
            parser=Path,
        ),
    ] = None,
    python: Annotated[
        Path | None,
        path_option("--python", metavar="PROGRAM", help="What this interpreter imports from."),
    ] = None,
    sm: Devices = None,
    all_sms: Annotated[
        bool, typer.Option("--all-sms", help="A matrix: every library and feature on every SM there is.")
    ] = False,
    driver: DriverVersion = None,
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option("--fail-on", help="Exit with 5 for this too. Repeatable.", show_default=False),
    ] = None,
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
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Read every file, also what was read before and is the same.")
    ] = False,
    remember: Annotated[
        bool,
        typer.Option(
            "--remember", help="Write what was read into the environment: an image of it is audited at once."
        ),
    ] = False,
    sarif: Annotated[
        Path | None, path_option("--sarif", metavar="FILE", help="Write the findings as SARIF 2.1.0.")
    ] = None,
    junit: Annotated[
        Path | None, path_option("--junit", metavar="FILE", help="Write a test case a feature, as JUnit XML.")
    ] = None,
    derive: Annotated[
        bool, typer.Option("--derive", help="Print a release's expectations from its wheels, as TOML.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Will it run on this card? Read every CUDA image there is, and say what runs, waits or is missing.

    Judged for the devices of --sm, else for this machine's GPUs; a result for its own SM. Where neither is,
    code is only listed. Needs no GPU. Exit code 5: code that should be there is missing, nothing of what is
    needed runs, the driver is too old, or a file cannot be read; and what --fail-on names.
    """
    from vllm_variants.cli import auditing

    if derive:
        _derive(paths or [])
        return
    if why:
        _why(paths or [], sm or [], as_json)
        return
    request = auditing.AuditRequest(
        tuple(paths or ()), python, tuple(sm or ()), driver, release, closure, closure_from, fresh, remember
    )
    if all_sms:
        auditing.show_matrix(request, as_json)
        return
    reports = auditing.audit(request, strict, as_json)
    auditing.write_reports(reports, sarif, junit)
    if not auditing.good(reports, strict, {each.value for each in fail_on or ()}):
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
