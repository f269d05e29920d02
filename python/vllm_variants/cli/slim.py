"""`vllm-variants slim`: keep the images that given devices run, in a library or a whole tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants.cli.options import (
    Compress,
    Devices,
    DryRun,
    Json,
    KeepSymbols,
    Native,
    ReleaseName,
    path_option,
)
from vllm_variants.cli.output import out, print_json, say, size, table
from vllm_variants.cli.rules import excludes, one_of, rules
from vllm_variants.errors import Error, Interrupted, UsageError
from vllm_variants.system.progress import bar

if TYPE_CHECKING:
    from vllm_variants.fatbin.tree import SlimReport
    from vllm_variants.model.capability import Capability


@rules(
    one_of("--sm", hint="name the device to keep code for: --sm sm90"),
    one_of("--output", "--in-place", "--dry-run", hint="give -o OUT, or --in-place"),
    excludes("--output", "--in-place", "--dry-run"),
)
def slim(
    path: Annotated[
        Path, typer.Argument(parser=Path, metavar="PATH", help="A shared library or a directory.")
    ],
    sm: Devices = None,
    output: Annotated[
        Path | None, path_option("--output", "-o", metavar="OUT", help="Where the slimmed copy goes.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the files of PATH itself.")] = False,
    dry_run: DryRun = False,
    keep_ptx: Annotated[
        bool, typer.Option("--keep-ptx", help="Keep one PTX a container, for later GPUs.")
    ] = False,
    resources: Annotated[
        bool,
        typer.Option("--resources/--no-resources", help="Stub foreign code in .cask_resource sections too."),
    ] = True,
    native: Native = False,
    compress: Compress = None,
    keep_symbols: KeepSymbols = False,
    release: ReleaseName = None,
    link: Annotated[
        bool, typer.Option("--link", help="With -o: hard-link what is not slimmed instead of copying it.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=0, metavar="N", help="Processes; 0 is one a core.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Slim for a device that no variant of the matrix is for.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep the code that the devices of --sm run, in the least room, and drop the rest.

    Images are compressed as the oldest driver of --release reads them, sections that nothing loads go,
    and with --native the ptxas of its CUDA compiles. Every new file is proven before it replaces an old
    one.
    """
    from vllm_variants import api
    from vllm_variants.fatbin.tree import Stopped

    devices = _known(sm or [], force)
    with bar("slimming") as advance:
        try:
            report = api.slim(
                path, devices, to=output, in_place=in_place, dry_run=dry_run, keep_ptx=keep_ptx,
                resources=resources, native=native, compress=compress, keep_symbols=keep_symbols,
                release=release, link=link, jobs=jobs, any_device=True, say=say,
                progress=lambda done, total, _: advance(done, total),
            )  # fmt: skip
        except Stopped as stop:
            if output:  # nothing was made
                raise
            raise Interrupted(
                f"{stop.slimmed} of {stop.libraries} libraries are slimmed, the others are as they were;"
                " run it again to slim the rest"
            ) from stop
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report, dry_run)
    if native and dry_run:
        _say_what_waits(path, devices)
    for name in report.unserved:
        say(f"warning: nothing in {path} runs on {name}")
    for library in report.native:
        for left in library.left:
            say(f"warning: {library.plan.name}: PTX stays for {left.device.sm}: {left.reason}")
    if report.failed:
        first = report.failed[0]
        raise Error(
            f"{len(report.failed)} of {len(report.files)} files were not slimmed: {first.path}: {first.kept}",
            hint="slim again once nothing stands in the way: what is done stays done",
        )


def _say_what_waits(path: Path, devices: list[Capability]) -> None:
    from vllm_variants.builders.wheels import native

    for device in devices:
        for line in native.waiting(path, device).sentences(device.sm):
            say(line)


def _known(devices: list[Capability], force: bool) -> list[Capability]:
    """`devices`; `UsageError` for one that no variant of the matrix is for, unless that is meant."""
    from vllm_variants.model import matrix

    rows = matrix.load().every_variant
    known = {c for row in rows for c in (row.capability, *(related.capability for related in row.related))}
    for device in devices:
        if not force and device not in known:
            raise UsageError(
                f"no variant is for {device.sm} (compute capability {device}): all code might be dropped",
                hint=f"give one of {', '.join(c.sm for c in sorted(known))}, or --force if you mean it",
            )
    return devices


_WORTH_A_ROW = 1_000_000
"""Bytes that a file must save for a row of its own among many."""
_FEW = 40
_RULES = {
    "images": "images that none of the devices runs",
    "native": "PTX that became compiled code",
    "compress": "images stored in less room",
    "symbols": "symbols and debug information",
}


def _show(report: SlimReport, dry_run: bool) -> None:
    rows = table("library", "before", "after", "images dropped", "stubs", "")
    files = sorted(report.files, key=lambda file: file.after - file.before)
    many = len(files) > _FEW
    shown = [file for file in files if not many or file.kept or file.before - file.after >= _WORTH_A_ROW]
    for file in shown:
        facts = (size(file.before), size(file.after), str(file.dropped_images), str(file.stubs))
        rows.add_row(file.path, *(facts if file.changed else (facts[0], "", "", "")), file.kept)
    out.print(rows)
    if len(shown) < len(files):
        say(f"and {len(files) - len(shown)} files that save less than {size(_WORTH_A_ROW)} each")
    sums = table("rule", "would save" if dry_run else "saves")
    for rule, saved in report.saved_by_rule.items():
        if saved:
            sums.add_row(_RULES[rule], size(saved) if saved > 0 else f"-{size(-saved)}")
    out.print(sums)
    names = ", ".join(device.sm for device in report.devices)
    ratio = report.after / report.before if report.before else 1.0
    say(f"{size(report.before)} → {size(report.after)} for {names}: {ratio:.3f} of what it was")
