"""`vllm-variants build`: build variants and link them as `./result-<variant>`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_variants import detection, gpus, matrix
from vllm_variants.cli.options import ReleaseName, VariantNames
from vllm_variants.cli.output import Json, say
from vllm_variants.errors import UsageError
from vllm_variants.matrix import Matrix, Release, Variant


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


def build(
    variants: VariantNames = None,
    all_variants: Annotated[bool, typer.Option("--all", help="Every variant of this host's system.")] = False,
    via: Annotated[
        Via, typer.Option(help="How: wheels installs published wheels; nix and flox compile from source.")
    ] = Via.WHEELS,
    release: ReleaseName = None,
    links: Annotated[
        Path, typer.Option("--links", metavar="DIR", help="The folder that gets the result-… links.")
    ] = Path(),
    index: Annotated[str | None, _option("URL", "wheels: one more index (aarch64's CUDA torch).")] = None,
    python: Annotated[Path | None, _option("PATH", "wheels: the interpreter; found if absent.")] = None,
    slim: Annotated[bool, typer.Option(help="wheels: keep only images that run on the variant's SM.")] = True,
    keep_ptx: Annotated[
        bool, typer.Option("--keep-ptx", help="wheels: keep one PTX a container, for later GPUs.")
    ] = False,
    systems: Annotated[
        list[str] | None, typer.Option("--system", metavar="SYSTEM", help="With --all: of this system too.")
    ] = None,
    keep_going: Annotated[bool, typer.Option(help="Build the rest when a variant fails.")] = True,
    retries: Annotated[int, _option("N", "nix, flox: try what failed again, so many times.", least=0)] = 0,
    logs: Annotated[Path | None, _option("DIR", "nix, flox: keep the full logs there.")] = None,
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
    signing_key: Annotated[Path | None, _option("FILE", "nix: sign what is pushed.")] = None,
    jsonl: Annotated[Path | None, _option("FILE", "Write a line of JSON as each variant ends.")] = None,
    junit: Annotated[Path | None, _option("FILE", "Write a JUnit report.")] = None,
    summary: Annotated[Path | None, _option("FILE", "Write a summary in Markdown.")] = None,
    as_json: Json = False,
) -> None:
    """Build variants and link them here as result-<variant>."""
    from vllm_variants.builders import Request
    from vllm_variants.cli import building
    from vllm_variants.cli.batch_report import BatchReport

    only_wheels: dict[str, object] = {
        "--index": index,
        "--python": python,
        "--no-slim": not slim,
        "--keep-ptx": keep_ptx,
    }
    source: dict[str, object] = {"--retries": retries, "--logs": logs, "--cores": cores}
    only_nix: dict[str, object] = {"--max-jobs": max_jobs, "--flake": flake, "--builders": builders}
    only_nix |= {"--override-input": override_input, "--nix-option": nix_option, "--store": store}
    only_nix |= {"--engine": engine, "--push": push, "--signing-key": signing_key}
    _refuse(via, {Via.WHEELS: only_wheels, Via.NIX: {**source, **only_nix}, Via.FLOX: source})
    if as_json and str(jsonl) == "-":
        raise UsageError("--json and --jsonl - both write to stdout", mend="give --jsonl a file")
    rows = matrix.load()
    chosen = rows.release(release)
    wanted = _wanted(variants or [], all_variants, systems or [], rows, chosen)
    if not links.is_dir():
        raise UsageError(f"there is no folder {links} for the links", mend=f"make it: mkdir -p {links}")
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


def _refuse(via: Via, options: dict[Via, dict[str, object]]) -> None:
    """`UsageError` for an option that was given and means nothing to this builder."""
    for group in options.values():
        for name, value in group.items():
            if value and name not in options[via]:
                fits = " or ".join(kind.value for kind, names in options.items() if name in names)
                raise UsageError(
                    f"{name} goes with --via {fits}, not with --via {via}", mend=f"leave out {name}"
                )


def _wanted(
    names: list[str], everything: bool, systems: list[str], rows: Matrix, release: Release
) -> tuple[Variant, ...]:
    """The variants that were asked for, each once, saying what a person's word was taken for."""
    if everything == bool(names):
        raise UsageError(
            "name variants, or auto, or --all" if not names else "--all goes without names",
            mend="vllm-variants build auto, or see `vllm-variants list`",
        )
    if systems and not everything:
        raise UsageError("--system goes with --all", mend="name the variants instead: sm90-arm64")
    if everything:
        for system in systems:
            if system not in matrix.SYSTEMS:
                known = " or ".join(matrix.SYSTEMS)
                raise UsageError(f"there is no system {system!r}", mend=f"write {known}")
        chosen = {matrix.host_system(), *systems}
        return tuple(variant for variant in rows.variants.values() if variant.system in chosen)
    found: list[Variant] = []
    for name in names:
        if name == "auto":
            found += detection.detect(gpus.machine(), rows, release).require()
            continue
        match = rows.parse(name)
        if match.taken_as != "a variant":
            say(f"{name}: taken as {match.taken_as} → {match.variant.short}")
        found.append(match.variant)
    return tuple(dict.fromkeys(found))
