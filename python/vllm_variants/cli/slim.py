"""`vllm-variants slim`: keep the images that given devices run, in a library or a whole tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants.cli.options import Devices, Json, path_option
from vllm_variants.cli.output import out, print_json, say, size, table
from vllm_variants.cli.rules import exactly_one, one_of, rules
from vllm_variants.errors import Error, InputError, Interrupted, MissingError, UsageError
from vllm_variants.system.progress import bar

if TYPE_CHECKING:
    from vllm_variants.fatbin.library import Options
    from vllm_variants.fatbin.tree import SlimReport
    from vllm_variants.model.capability import Capability


@rules(
    one_of("--sm", hint="name the device to keep code for: --sm sm90"),
    exactly_one("--output", "--in-place", hint="give -o OUT, or --in-place"),
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
    keep_ptx: Annotated[
        bool, typer.Option("--keep-ptx", help="Keep one PTX a container, for later GPUs.")
    ] = False,
    resources: Annotated[
        bool,
        typer.Option("--resources/--no-resources", help="Stub foreign code in .cask_resource sections too."),
    ] = True,
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
    """Keep the code that the devices of --sm run, and drop the rest.

    Every new file is proven before it replaces an old one.
    """
    is_folder = _is_folder(path)
    devices = _known(sm or [], force)
    options: Options = {"keep_ptx": keep_ptx, "resources": resources, "durable": output is None}
    if is_folder:
        report = _tree(path, output, devices, options, jobs, link)
    else:
        report = _file(path, output, devices, options)
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)
    for name in report.unserved:
        say(f"warning: nothing in {path} runs on {name}")
    if report.failed:
        first = report.failed[0]
        raise Error(
            f"{len(report.failed)} of {len(report.files)} files were not slimmed: {first.path}: {first.kept}",
            hint="slim again once nothing stands in the way: what is done stays done",
        )


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _known(devices: list[Capability], force: bool) -> list[Capability]:
    """`devices`; `UsageError` for one that no variant of the matrix is for, unless that is meant."""
    from vllm_variants.model import matrix

    rows = matrix.load().variants.values()
    known = {c for row in rows for c in (row.capability, *(related.capability for related in row.related))}
    for device in devices:
        if not force and device not in known:
            raise UsageError(
                f"no variant is for {device.sm} (compute capability {device}): all code might be dropped",
                hint=f"give one of {', '.join(c.sm for c in sorted(known))}, or --force if you mean it",
            )
    return devices


def _tree(
    path: Path, output: Path | None, devices: list[Capability], options: Options, jobs: int, link: bool
) -> SlimReport:
    from vllm_variants.fatbin.copy import slimmed_copy
    from vllm_variants.fatbin.tree import Stopped, slim_tree

    with bar("slimming") as advance:

        def work(root: Path) -> SlimReport:
            return slim_tree(
                root, devices, progress=lambda done, total, _: advance(done, total), jobs=jobs, **options
            )

        if output:
            return slimmed_copy(path, output, work, link=link)
        try:
            return work(path)
        except Stopped as stop:
            raise Interrupted(
                f"{stop.slimmed} of {stop.libraries} libraries are slimmed, the others are as they were;"
                " run it again to slim the rest"
            ) from stop


def _file(path: Path, output: Path | None, devices: list[Capability], options: Options) -> SlimReport:
    from vllm_variants.fatbin.copy import refuse_output
    from vllm_variants.fatbin.library import copy_file, slim_file
    from vllm_variants.fatbin.tree import UNREMARKABLE, SlimReport
    from vllm_variants.system import atomic

    path = path.resolve()  # a symbolic link stays one
    if output:
        output = output / path.name if os.path.isdir(output) else output  # noqa: PTH112 - any name may come
        refuse_output(output)
    atomic.remove_leftovers_of(output or path)
    report = slim_file(path, devices, to=output, **options)
    if report.kept in UNREMARKABLE or report.kept.startswith("an object"):
        raise InputError(f"{path} cannot be slimmed: {report.kept}")
    if output and not report.changed:
        copy_file(path, output, durable=False)
    return SlimReport(str(path), tuple(devices), report.before, report.after, (report,))


def _show(report: SlimReport) -> None:
    rows = table("library", "before", "after", "images dropped", "stubs", "")
    for file in sorted(report.files, key=lambda file: file.after - file.before):
        facts = (size(file.before), size(file.after), str(file.dropped_images), str(file.stubs))
        rows.add_row(file.path, *(facts if file.changed else (facts[0], "", "", "")), file.kept)
    out.print(rows)
    names = ", ".join(device.sm for device in report.devices)
    ratio = report.after / report.before if report.before else 1.0
    say(f"{size(report.before)} → {size(report.after)} for {names}: {ratio:.3f} of what it was")
