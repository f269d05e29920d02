"""`vllm-variants slim`: keep the images that given devices run, in a library or a whole tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants.cli.device import device
from vllm_variants.cli.output import Json, out, print_json, say, size, table
from vllm_variants.errors import InputError, MissingError, UsageError
from vllm_variants.progress import bar

if TYPE_CHECKING:
    from vllm_variants.capability import Capability
    from vllm_variants.fatbin.slim import SlimReport


def slim(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A shared library or a directory.")],
    sm: Annotated[
        list[str],
        typer.Option("--sm", metavar="SM", help="A device to keep: sm90, 9.0 or a GPU's name. Repeatable."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the slimmed copy goes.")
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
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Processes; all cores if absent.")] = None,
    as_json: Json = False,
) -> None:
    """Drop the code that other GPUs would run. Every new file is proven before it replaces an old one."""
    if not path.exists():
        raise MissingError(f"{path} does not exist")
    if (output is None) == (not in_place):
        raise UsageError("say where the slimmed files go", mend="give -o OUT, or --in-place")
    devices = [device(each) for each in sm]
    options = {"keep_ptx": keep_ptx, "resources": resources}
    if path.is_dir():
        report = _tree(path, output, devices, options, jobs, link)
    else:
        report = _file(path, output, devices, options)
    if as_json:
        print_json(report.as_dict())
    else:
        _show(report)


def _tree(
    path: Path,
    output: Path | None,
    devices: list[Capability],
    options: dict[str, bool],
    jobs: int | None,
    link: bool,
) -> SlimReport:
    from vllm_variants.fatbin.copy import slimmed_copy
    from vllm_variants.fatbin.slim import slim_tree

    with bar("slimming") as advance:

        def progress(done: int, total: int, name: str) -> None:
            advance(done, total)

        def work(root: Path) -> SlimReport:
            return slim_tree(root, devices, progress=progress, jobs=jobs, **options)

        return slimmed_copy(path, output, work, link=link) if output else work(path)


def _file(path: Path, output: Path | None, devices: list[Capability], options: dict[str, bool]) -> SlimReport:
    from vllm_variants.fatbin.library import slim_file
    from vllm_variants.fatbin.slim import UNREMARKABLE, SlimReport

    path = path.resolve()  # a symbolic link stays one
    if output and output.is_dir():
        output = output / path.name
    if output and output.exists():
        raise UsageError(f"{output} exists already", mend="choose another output, or remove it")
    report = slim_file(path, devices, to=output, **options)
    if report.kept in UNREMARKABLE or report.kept.startswith("an object"):
        raise InputError(f"{path} cannot be slimmed: {report.kept}")
    if output and not report.changed:
        import shutil

        shutil.copy2(path, output)
    return SlimReport(str(path), tuple(devices), report.before, report.after, (report,))


def _show(report: SlimReport) -> None:
    rows = table("library", "before", "after", "images dropped", "stubs", "")
    for file in sorted(report.files, key=lambda each: each.after - each.before):
        facts = (size(file.before), size(file.after), str(file.dropped_images), str(file.stubs))
        rows.add_row(file.path, *(facts if file.changed else (facts[0], "", "", "")), file.kept)
    out.print(rows)
    names = ", ".join(each.sm for each in report.devices)
    ratio = report.after / report.before if report.before else 1.0
    say(f"{size(report.before)} → {size(report.after)} for {names}: {ratio:.3f} of what it was")
