"""`vllm-variants build`: build variants and link them as `./result-<variant>`."""

from __future__ import annotations

import os
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_variants.cli.build_options import Via, path, require_compatible
from vllm_variants.cli.options import ReleaseName, VariantNames
from vllm_variants.cli.output import Json, say
from vllm_variants.errors import UsageError
from vllm_variants.machine import detection, gpus
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS, host_system
from vllm_variants.model.variants import Matrix, Release, Variant


class Engine(StrEnum):
    """What may run the builds of --via nix besides the tool itself."""

    NIX_FAST_BUILD = "nix-fast-build"


def _option(metavar: str, help: str, least: int | None = None) -> Any:
    return typer.Option(metavar=metavar, help=help, min=least)


def _path(option: str, metavar: str, help: str) -> Any:
    return typer.Option(option, metavar=metavar, help=help, parser=path(option))


def build(
    context: typer.Context,
    variants: VariantNames = None,
    all_variants: Annotated[bool, typer.Option("--all", help="Every variant of this host's system.")] = False,
    via: Annotated[
        Via, typer.Option(help="How: wheels installs published wheels; nix and flox compile from source.")
    ] = Via.WHEELS,
    release: ReleaseName = None,
    links: Annotated[Path, _path("--links", "DIR", "The folder that gets the result-… links.")] = Path(),
    index: Annotated[str | None, _option("URL", "wheels: one more index (aarch64's CUDA torch).")] = None,
    python: Annotated[
        Path | None, _path("--python", "PATH", "wheels: the interpreter; found if absent.")
    ] = None,
    slim: Annotated[bool, typer.Option(help="wheels: keep only images that run on the variant's SM.")] = True,
    keep_ptx: Annotated[
        bool, typer.Option("--keep-ptx", help="wheels: keep one PTX a container, for later GPUs.")
    ] = False,
    systems: Annotated[
        list[str] | None, typer.Option("--system", metavar="SYSTEM", help="With --all: of this system too.")
    ] = None,
    keep_going: Annotated[bool, typer.Option(help="Build the rest when a variant fails.")] = True,
    retries: Annotated[int, _option("N", "nix, flox: try what failed again, so many times.", least=0)] = 0,
    logs: Annotated[Path | None, _path("--logs", "DIR", "nix, flox: keep the full logs there.")] = None,
    cores: Annotated[
        int | None, _option("N", "nix, flox: compile jobs a build; computed from memory if absent.", least=1)
    ] = None,
    max_jobs: Annotated[int | None, _option("N", "nix: builds at once; computed if absent.", least=0)] = None,
    flake: Annotated[str | None, _option("REF", "nix: the flake; this checkout if absent.")] = None,
    override_input: Annotated[
        list[str] | None, _option("INPUT=REF", "nix: another input for the flake: nixpkgs=path:….")
    ] = None,
    nix_option: Annotated[list[str] | None, _option("NAME=VALUE", "nix: one of Nix's settings.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="nix: another program that runs the builds.")] = None,
    builders: Annotated[str | None, _option("SPEC", "nix: remote builders, as in nix.conf.")] = None,
    store: Annotated[str | None, _option("URL", "nix: build in another store: ssh-ng://host.")] = None,
    push: Annotated[str | None, _option("URL", "nix: copy audited results to this cache.")] = None,
    signing_key: Annotated[Path | None, _path("--signing-key", "FILE", "nix: sign what is pushed.")] = None,
    jsonl: Annotated[
        Path | None, _path("--jsonl", "FILE", "Write a line of JSON as each variant ends.")
    ] = None,
    junit: Annotated[Path | None, _path("--junit", "FILE", "Write a JUnit report.")] = None,
    summary: Annotated[Path | None, _path("--summary", "FILE", "Write a summary in Markdown.")] = None,
    as_json: Json = False,
) -> None:
    """Build variants and link them here as result-<variant>."""
    from vllm_variants.cli import building
    from vllm_variants.cli.batch_report import BatchReport
    from vllm_variants.model.requests import Request

    require_compatible(context, via)
    rows = matrix.load()
    chosen = rows.release(release)
    wanted = _wanted(variants or [], all_variants, systems or [], rows, chosen)
    _require_folder(links)
    requests = [Request(variant, chosen, links, index, python, slim, keep_ptx) for variant in wanted]
    options = building.options(cores, max_jobs, keep_going, retries, logs, push, signing_key)
    with BatchReport(requests, as_json, jsonl, junit, summary) as report:
        if via is Via.WHEELS:
            builder = building.wheels(keep_going)
        elif via is Via.FLOX:
            builder = building.flox(options)
        else:
            how = building.NixChoices(flake, override_input or [], nix_option or [], builders, store, engine)
            builder = building.nix(how, options)
        builder.build_all(requests, say, report.take)


def _require_folder(links: Path) -> None:
    """`UsageError` when `links` is no folder that can get links."""
    try:
        if stat.S_ISDIR(links.stat().st_mode):
            return
    except FileNotFoundError:
        if os.path.lexists(links):
            raise UsageError(
                f"{links} is a broken link, not a folder", hint="name a folder: --links DIR"
            ) from None
        raise UsageError(
            f"there is no folder {links} for the links", hint=f"make it: mkdir -p {links}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the folder {links} for the links cannot be used: {error.strerror}",
            hint="name another: --links DIR",
        ) from error
    raise UsageError(f"{links} is a file, not a folder for the links", hint="name its folder: --links DIR")


def _wanted(
    names: list[str], everything: bool, systems: list[str], rows: Matrix, release: Release
) -> tuple[Variant, ...]:
    """The variants that were asked for, each once, saying what a person's word was taken for."""
    if everything == bool(names):
        raise UsageError(
            "name variants, or auto, or --all" if not names else "--all goes without names",
            hint="vllm-variants build auto, or see `vllm-variants list`",
        )
    if everything:
        for system in systems:
            if system not in SYSTEMS:
                known = " or ".join(SYSTEMS)
                raise UsageError(f"there is no system {system!r}", hint=f"write {known}")
        chosen = {host_system(), *systems}
        return tuple(variant for variant in rows.variants.values() if variant.system in chosen)
    found: list[Variant] = []
    for name in names:
        if name == "auto":
            found += detection.detect(gpus.machine(), rows, release).require()
            continue
        match = rows.parse(name)
        if match.interpretation != "a variant":
            say(f"{name}: taken as {match.interpretation} → {match.variant.short}")
        found.append(match.variant)
    return tuple(dict.fromkeys(found))
