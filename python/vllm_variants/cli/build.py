"""`vllm-variants build`: build variants and link them as `./result-<variant>`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vllm_variants import detection, gpus, matrix
from vllm_variants.cli.options import ReleaseName, VariantNames
from vllm_variants.cli.output import Json, print_json, say, size
from vllm_variants.errors import Error, ExitCode, UsageError
from vllm_variants.matrix import Matrix, Release, Variant


class Via(StrEnum):
    """The builders, by name."""

    WHEELS = "wheels"


def build(
    variants: VariantNames = None,
    all_variants: Annotated[bool, typer.Option("--all", help="Every variant of this host's system.")] = False,
    via: Annotated[Via, typer.Option(help="How: wheels installs published wheels.")] = Via.WHEELS,
    release: ReleaseName = None,
    links: Annotated[
        Path, typer.Option("--links", metavar="DIR", help="The folder that gets the result-… links.")
    ] = Path(),
    index: Annotated[
        str | None, typer.Option(metavar="URL", help="One more package index (aarch64's CUDA torch).")
    ] = None,
    python: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The interpreter for the result; found if absent.")
    ] = None,
    slim: Annotated[bool, typer.Option(help="Keep only images that run on the variant's SM.")] = True,
    keep_ptx: Annotated[
        bool, typer.Option("--keep-ptx", help="Keep one PTX a container, for later GPUs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build variants, each into the store, and link them here as result-<variant>."""
    from vllm_variants.builders import Request
    from vllm_variants.builders.wheels import Wheels
    from vllm_variants.store import Store

    rows = matrix.load()
    chosen = rows.release(release)
    wanted = _wanted(variants or [], all_variants, rows, chosen)
    if not links.is_dir():
        raise UsageError(f"there is no folder {links} for the links", mend=f"make it: mkdir -p {links}")
    builder = Wheels(Store.default())
    facts: list[object] = []
    failed: Error | None = None
    for variant in wanted:
        request = Request(variant, chosen, links, index, python, slim, keep_ptx)
        try:
            result = builder.build(request, say)
        except Error as error:
            if len(wanted) == 1:
                raise
            say(f"{variant.short} failed: {error}")
            facts.append({"variant": request.name, "status": "failed", "reason": error.message})
            failed = error
            continue
        manifest = result.manifest.facts
        sizes = manifest["bytes"]
        say(f"{request.link} ({size(sizes['result'])}; {size(sizes['installed'])} before slimming)")
        facts.append(
            {
                "variant": request.name,
                "status": "built",
                "link": str(request.link.absolute()),
                "path": str(result.path),
                "manifest": manifest,
            }
        )
    if as_json:
        print_json(facts)
    if failed:
        raise typer.Exit(failed.exit_code if len(wanted) == 1 else ExitCode.FAILED)


def _wanted(names: list[str], everything: bool, rows: Matrix, release: Release) -> tuple[Variant, ...]:
    """The variants that were asked for, each once, saying what a person's word was taken for."""
    if everything == bool(names):
        raise UsageError(
            "name variants, or auto, or --all" if not names else "--all goes without names",
            mend="vllm-variants build auto, or see `vllm-variants list`",
        )
    if everything:
        host = matrix.host_system()
        return rows.for_system(host)
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
