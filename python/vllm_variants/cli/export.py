"""`vllm-variants export`: a result as a folder, an archive, an OCI image or a wheelhouse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vllm_variants.cli.options import Json, ReleaseName, VariantNames, path_option
from vllm_variants.cli.output import print_json, say, size
from vllm_variants.cli.rules import CommandLine, one_of, rules
from vllm_variants.errors import MissingError, UsageError
from vllm_variants.export import destinations
from vllm_variants.export.destinations import Form
from vllm_variants.system.progress import bar

_TREES = (Form.FOLDER, Form.TAR, Form.OCI, Form.OCI_ARCHIVE)
_IMAGES = (Form.OCI, Form.OCI_ARCHIVE)
_WHEELS = (Form.WHEELS,)
OF_FORMS = {
    "--python": _TREES,
    "--gzip": _IMAGES,
    "--base": _IMAGES,
    "--push": _IMAGES,
    "--all": _WHEELS,
    "--variants": _WHEELS,
}
"""The options that only some forms have."""


def _of_their_forms(line: CommandLine) -> None:
    form = destinations.parse(str(line.values["to"])).form
    for option, forms in OF_FORMS.items():
        if option in line.given and form not in forms:
            raise UsageError(
                f"{option} does not go with --to {form}:…",
                hint=f"it goes with {', '.join(f'{each}:' for each in forms)}",
            )


@rules(
    one_of("VARIANT", "--result", hint="name the variant: vllm-variants export sm90 --to oci:image"),
    one_of("--to", hint="say where it goes: --to folder:DIR, oci:DIR, wheels:DIR"),
    _of_their_forms,
)
def export(
    variants: VariantNames = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORM:PATH",
            help="folder:DIR, tar.zst:FILE, oci:DIR, oci-archive:FILE or wheels:DIR.",
            show_default=False,
        ),
    ] = None,
    result: Annotated[
        list[Path] | None,
        path_option(
            "--result", metavar="PATH", help="A result to export, besides ./result-VARIANT. Repeatable."
        ),
    ] = None,
    python: Annotated[
        Path | None,
        path_option(
            "--python", metavar="PATH", help="The Python to include, instead of one that uv installs."
        ),
    ] = None,
    gzip: Annotated[bool, typer.Option("--gzip", help="Images: for pullers that do not read zstd.")] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Images: what they stand on: debian:SUITE, debian:SUITE@MOMENT or oci:DIR[:TAG]; if absent,"
            " packages of debian:trixie.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="docker://…", help="Images: copy it to a registry with skopeo, then."),
    ] = None,
    all_wheels: Annotated[
        bool, typer.Option("--all", help="Wheels: with those that were not changed, as they are published.")
    ] = False,
    variant_wheels: Annotated[
        bool,
        typer.Option("--variants", help="Wheels: variant wheels, of which uv picks by GPU (preview)."),
    ] = False,
    release: ReleaseName = None,
    as_json: Json = False,
) -> None:
    """Take a result elsewhere: as a folder that needs nothing of this host, an OCI image, or wheels.

    NVIDIA's libraries are changed in it: for your own use, not for a public registry or index
    (docs/export.md).
    """
    from vllm_variants import api

    assert to is not None
    destination = destinations.parse(to)
    paths = [*_built(variants or [], release), *(result or [])]
    with bar(f"exporting to {destination.form}") as advance:
        exported = api.export_results(
            paths,
            to,
            python=python,
            gzip=gzip,
            base=base,
            push=push,
            all_wheels=all_wheels,
            variants=variant_wheels,
            say=say,
            progress=advance,
        )
    if as_json:
        print_json(exported.as_dict())
    say(f"{destination.path}: {size(exported.bytes)}")


def _built(variants: list[str], release: str | None) -> list[Path]:
    """The `./result-…` links of some variants; raises `MissingError` for one that was not built."""
    from vllm_variants.model import matrix

    rows = matrix.load()
    chosen, links = rows.release(release), []
    for name in variants:
        variant = rows.parse(name).variant
        link = Path(f"result-{variant.name(chosen)}")
        if not os.path.lexists(link):
            words = f"{variant.short} --release {chosen.name}" if release else variant.short
            raise MissingError(f"there is no {link} here", hint=f"build it: vllm-variants build {words}")
        links.append(link)
    return links
