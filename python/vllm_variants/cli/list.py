"""`vllm-variants list`: the matrix, and the results that exist."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from vllm_variants import documents, store
from vllm_variants.cli import known_advisories
from vllm_variants.cli.options import Json, ReleaseName
from vllm_variants.cli.output import out, print_json, say, size, table
from vllm_variants.machine import detection, gpus
from vllm_variants.model import matrix, offers
from vllm_variants.model.variants import Matrix, Release, Variant


def list_variants(
    as_json: Json = False,
    release: ReleaseName = None,
    results: Annotated[
        bool, typer.Option("--results", help="Show the results in the store instead.")
    ] = False,
) -> None:
    """List the variants and which of them this machine's GPUs need; or, with --results, what is built."""
    if results:
        _list_results(as_json)
        return
    rows = matrix.load()
    chosen = rows.release(release)
    needed = detection.detect(gpus.machine(), rows, chosen).variants
    if as_json:
        print_json(_facts(rows, chosen, needed))
        return
    listing = table("variant", "SM", "architecture", "system", "GPUs", "here")
    offered = offers.of(rows, chosen).values()
    for variant in offered:
        names = _lines(variant.all_gpus, max(24, out.width - 56))
        here = "←" if variant in needed else ""
        listing.add_row(
            variant.short, str(variant.capability), variant.architecture, variant.system, names, here
        )
    out.print(listing)
    stack = chosen.stack
    say(
        f"release {chosen.name}: Python {stack.python}, CUDA {stack.cuda}, torch {stack.torch}, "
        f"driver ≥ {stack.driver}"
    )
    say(f"advisories for vLLM {chosen.name}: {known_advisories.of(chosen.name).sentence}")


def _lines(names: tuple[str, ...], width: int) -> str:
    """Names with commas, broken into lines between names only."""
    joined = ", ".join(name.replace(" ", "\0") for name in names)
    return textwrap.fill(joined, width, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _facts(rows: Matrix, release: Release, needed: tuple[Variant, ...]) -> dict[str, object]:
    return {
        "schema": documents.LIST,
        "releases": [
            {
                "name": r.name,
                "default": r == rows.default,
                "nixpkgs": r.nixpkgs,
                "builders": list(r.builders),
                "glibc": r.glibc,
                "stack": r.stack.as_dict(),
                "advisories": known_advisories.of(r.name).summary(),
            }
            for r in rows.releases.values()
        ],
        "release": release.name,
        "variants": [
            {
                "name": v.name(release),
                "short": v.short,
                "capability": str(v.capability),
                "architecture": v.architecture,
                "system": v.system,
                "gpus": list(v.gpus),
                "related": {str(r.capability): list(r.gpus) for r in v.related},
                "code": held.as_dict() if (held := offers.code(release, v)) else None,
                "needed_here": v in needed,
            }
            for v in offers.of(rows, release).values()
        ],
    }


def _list_results(as_json: bool) -> None:
    entries = store.Store.default().entries()
    if as_json:
        print_json({"schema": documents.RESULTS, "results": [entry.as_dict() for entry in entries]})
        return
    if not entries:
        say("no results yet; build one: vllm-variants build auto")
        return
    listing = table("variant", "release", "builder", "size", "built", "linked from")
    listing.columns[-1].overflow = "fold"
    for entry in entries:
        links = "\n".join(str(link) for link in entry.links) or "nowhere: gc removes it"
        if entry.result is None:
            listing.add_row(*entry.named, "", "", "damaged", links)
            continue
        manifest = entry.result.manifest
        built = manifest.created.replace("T", " ").removesuffix("Z")[:16]
        listing.add_row(manifest.short, manifest.release, manifest.builder, size(entry.bytes), built, links)
    out.print(listing)
    for entry in entries:
        if entry.problem:
            say(f"{entry.path.name}: {entry.problem}")
