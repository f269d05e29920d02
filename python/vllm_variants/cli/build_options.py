"""The options of `build` in groups, and what goes together.

A new option is one more field of its group; the group says with which builders it goes, and heads it in
the help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from vllm_variants.builders.wheels.bytecode import Bytecode
from vllm_variants.cli.options import Compress, Json, KeepSymbols, Native, path_option
from vllm_variants.cli.rules import CommandLine, Rule, distinct_files, exactly_one, excludes, requires
from vllm_variants.errors import UsageError


class Via(StrEnum):
    """The builders, by name."""

    WHEELS = "wheels"
    NIX = "nix"
    FLOX = "flox"


class Engine(StrEnum):
    """What may run the builds of --via nix besides the tool itself."""

    NIX_FAST_BUILD = "nix-fast-build"


def _option(metavar: str, help: str, least: int | None = None) -> Any:
    return typer.Option(metavar=metavar, help=help, min=least)


@dataclass(frozen=True)
class WheelOptions:
    """Options of --via wheels."""

    builders_of: ClassVar[Sequence[Via]] = (Via.WHEELS,)

    index: Annotated[str | None, _option("URL", "One more index (aarch64's CUDA torch).")] = None
    python: Annotated[
        Path | None, path_option("--python", metavar="PATH", help="The interpreter; found if absent.")
    ] = None
    slim: Annotated[bool, typer.Option(help="Keep only images that run on the variant's SM.")] = True
    keep_ptx: Annotated[
        bool, typer.Option("--keep-ptx", help="Keep one PTX a container, for later GPUs.")
    ] = False
    native: Native = False
    compress: Compress = None
    keep_symbols: KeepSymbols = False
    keep_unread: Annotated[bool, typer.Option("--keep-unread", help="Keep the files that nothing opens.")] = (
        False
    )
    without: Annotated[
        list[str], _option("NAME,…", "Leave out files that few programs open, by name: ray-java, ….")
    ] = field(default_factory=list)
    bytecode: Annotated[
        Bytecode, typer.Option(help="Make bytecode for all modules, those that serving imports, or none.")
    ] = Bytecode.SERVING


@dataclass(frozen=True)
class SourceOptions:
    """Options of --via nix and --via flox."""

    builders_of: ClassVar[Sequence[Via]] = (Via.NIX, Via.FLOX)

    cores: Annotated[
        int | None, _option("N", "Compile jobs a build; computed from memory if absent.", least=1)
    ] = None
    retries: Annotated[int, _option("N", "Try what failed again, so many times.", least=0)] = 0
    logs: Annotated[Path | None, path_option("--logs", metavar="DIR", help="Keep the full logs there.")] = (
        None
    )


@dataclass(frozen=True)
class NixOptions:
    """Options of --via nix."""

    builders_of: ClassVar[Sequence[Via]] = (Via.NIX,)

    max_jobs: Annotated[int | None, _option("N", "Builds at once; computed if absent.", least=0)] = None
    flake: Annotated[str | None, _option("REF", "The flake; this checkout if absent.")] = None
    override_input: Annotated[
        list[str], _option("INPUT=REF", "Another input for the flake: nixpkgs=path:….")
    ] = field(default_factory=list)
    nix_option: Annotated[list[str], _option("NAME=VALUE", "One of Nix's settings.")] = field(
        default_factory=list
    )
    engine: Annotated[Engine | None, typer.Option(help="Another program that runs the builds.")] = None
    builders: Annotated[str | None, _option("SPEC", "Remote builders, as in nix.conf.")] = None
    store: Annotated[str | None, _option("URL", "Build in another store: ssh-ng://host.")] = None
    push: Annotated[str | None, _option("URL", "Copy audited results to this cache.")] = None
    signing_key: Annotated[
        Path | None, path_option("--signing-key", metavar="FILE", help="Sign what is pushed.")
    ] = None


@dataclass(frozen=True)
class ReportOptions:
    """Reports."""

    jsonl: Annotated[
        Path | None,
        path_option("--jsonl", metavar="FILE", help="Write a line of JSON as each variant ends."),
    ] = None
    junit: Annotated[Path | None, path_option("--junit", metavar="FILE", help="Write a JUnit report.")] = None
    summary: Annotated[
        Path | None, path_option("--summary", metavar="FILE", help="Write a summary in Markdown.")
    ] = None
    as_json: Json = False


def _goes_with(group: type[WheelOptions | SourceOptions | NixOptions]) -> Rule:
    """The options of `group` go with its builders only."""

    def rule(line: CommandLine) -> None:
        via = line.values["via"]
        for option, parameter in line.parameter_of.items():
            if via not in group.builders_of and parameter in group.__dataclass_fields__:
                builders = " or ".join(group.builders_of)
                raise UsageError(
                    f"{option} goes with --via {builders}, not with --via {via}", hint=f"leave out {option}"
                )

    return rule


def _one_document_on_stdout(line: CommandLine) -> None:
    if "--json" in line.given and str(line.given.get("--jsonl")) == "-":
        raise UsageError(
            "--json and --jsonl - do not go together: both write to stdout", hint="give --jsonl a file"
        )


RULES: Sequence[Rule] = (
    exactly_one("VARIANT", "--all", hint="vllm-variants build auto, or see `vllm-variants list`"),
    *(_goes_with(group) for group in (WheelOptions, SourceOptions, NixOptions)),
    requires("--system", "--all", hint="name the variants instead: sm90-arm64"),
    requires("--signing-key", "--push", hint="name the cache: --push file:///srv/cache"),
    excludes("--keep-ptx", "--no-slim", reason="only slimming drops PTX", hint="leave out --keep-ptx"),
    *(
        excludes(option, "--no-slim", reason="it leaves all as published", hint=f"leave out {option}")
        for option in ("--native", "--compress", "--keep-symbols", "--keep-unread", "--without")
    ),
    excludes("--without", "--keep-unread", reason="no file goes then", hint="leave out --keep-unread"),
    _one_document_on_stdout,
    distinct_files("--jsonl", "--junit", "--summary"),
)
