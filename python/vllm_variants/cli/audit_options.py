"""The options of `vllm-variants audit`, in groups, and what goes together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_variants.cli.options import AuditRelease, Devices, DriverVersion, path_option
from vllm_variants.cli.rules import CommandLine, Rule, distinct_files, excludes, requires
from vllm_variants.errors import UsageError


class FailOn(StrEnum):
    """What may make the exit code 5."""

    MISSING = "missing"
    JIT = "jit"
    FOREIGN = "foreign"
    DRIVER = "driver"


@dataclass(frozen=True)
class ReadOptions:
    """What is read."""

    python: Annotated[
        Path | None,
        path_option("--python", metavar="PROGRAM", help="What this interpreter imports from."),
    ] = None
    closure: Annotated[
        bool, typer.Option("--closure", help="With all that the store path needs at run time.")
    ] = False
    closure_from: Annotated[
        Path | None,
        path_option(
            "--closure-from",
            metavar="FILE",
            help="The same, with its paths in FILE, one a line: nix-store is not asked.",
        ),
    ] = None
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Read every file, also what was read before and is the same.")
    ] = False
    remember: Annotated[
        bool,
        typer.Option(
            "--remember", help="Write what was read into the environment: an image of it is audited at once."
        ),
    ] = False


@dataclass(frozen=True)
class JudgeOptions:
    """What it is judged for."""

    sm: Devices = None
    all_sms: Annotated[
        bool, typer.Option("--all-sms", help="A matrix: every library and feature on every SM there is.")
    ] = False
    driver: DriverVersion = None
    release: AuditRelease = None
    fail_on: Annotated[
        list[FailOn] | None,
        typer.Option(
            "--fail-on",
            metavar="|".join(FailOn),
            help="Exit with 5 for this too. Repeatable.",
            show_default=False,
        ),
    ] = None
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail unless there is code, and the verdict is `pass`.")
    ] = False


@dataclass(frozen=True)
class ReportOptions:
    """Reports for continuous integration."""

    sarif: Annotated[
        Path | None, path_option("--sarif", metavar="FILE", help="Write the findings as SARIF 2.1.0.")
    ] = None
    junit: Annotated[
        Path | None, path_option("--junit", metavar="FILE", help="Write a test case a feature, as JUnit XML.")
    ] = None


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


RULES: tuple[Rule, ...] = (
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
