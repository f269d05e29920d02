"""`vllm-variants slim`: keep the images that given devices run, in a library or a whole tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants.cli.device import device
from vllm_variants.cli.output import Json, out, print_json, say, size, table
from vllm_variants.errors import Error, InputError, Interrupted, MissingError, UsageError
from vllm_variants.system.progress import bar

if TYPE_CHECKING:
    from vllm_variants.fatbin.rules import Rules
    from vllm_variants.fatbin.tree import SlimReport
    from vllm_variants.model.capability import Capability


def _path(text: str) -> Path:
    """A path as it was typed; an empty one, of a variable that is not set, would be the current folder."""
    if not text:
        raise UsageError("an empty path names nothing", hint="is a variable of your shell not set?")
    return Path(text)


def slim(
    path: Annotated[
        Path, typer.Argument(parser=_path, metavar="PATH", help="A shared library or a directory.")
    ],
    sm: Annotated[
        list[str],
        typer.Option("--sm", metavar="SM", help="A device to keep: sm90, 9.0 or a GPU's name. Repeatable."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=_path, metavar="OUT", help="Where the slimmed copy goes."),
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
    """Drop the code that other GPUs would run. Every new file is proven before it replaces an old one."""
    is_folder = _is_folder(path)
    if (output is None) == (not in_place):
        raise UsageError("say where the slimmed files go", hint="give -o OUT, or --in-place")
    devices = [_device(each, force) for each in sm]
    from vllm_variants.fatbin.rules import Rules

    rules = Rules(keep_ptx, resources)
    if is_folder:
        report = _tree(path, output, devices, rules, jobs, link)
    else:
        report = _file(path, output, devices, rules)
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


def _device(text: str, force: bool) -> Capability:
    """The device that `text` means, one of the matrix unless that is not wanted."""
    from vllm_variants.model import matrix

    found = device(text)
    rows = matrix.load().variants.values()
    known = {c for row in rows for c in (row.capability, *(r.capability for r in row.related))}
    if found not in known and not force:
        raise UsageError(
            f"no variant is for {found.sm} (compute capability {found}): all code might be dropped",
            hint=f"give one of {', '.join(c.sm for c in sorted(known))}, or --force if you mean it",
        )
    return found


def _tree(
    path: Path, output: Path | None, devices: list[Capability], rules: Rules, jobs: int, link: bool
) -> SlimReport:
    from vllm_variants.fatbin.copy import slimmed_copy
    from vllm_variants.fatbin.tree import Stopped, slim_tree

    with bar("slimming") as advance:

        def work(root: Path) -> SlimReport:
            return slim_tree(
                root,
                devices,
                rules,
                progress=lambda done, total, _: advance(done, total),
                jobs=jobs,
                durable=output is None,
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


def _file(path: Path, output: Path | None, devices: list[Capability], rules: Rules) -> SlimReport:
    from vllm_variants.fatbin.copy import refuse_output
    from vllm_variants.fatbin.library import slim_file
    from vllm_variants.fatbin.tree import UNREMARKABLE, SlimReport
    from vllm_variants.fatbin.writing import copy_file
    from vllm_variants.system import atomic

    path = path.resolve()  # a symbolic link stays one
    if output:
        output = output / path.name if os.path.isdir(output) else output  # noqa: PTH112 - any name may come
        refuse_output(output)
    atomic.remove_leftovers_of(output or path)
    report = slim_file(path, devices, rules, to=output, durable=output is None)
    if report.kept in UNREMARKABLE or report.kept.startswith("an object"):
        raise InputError(f"{path} cannot be slimmed: {report.kept}")
    if output and not report.changed:
        copy_file(path, output, durable=False)
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
