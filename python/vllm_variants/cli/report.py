"""`vllm-variants report`: a result, an audit or a batch of builds in pictures, as one HTML file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_variants.cli.command import with_groups
from vllm_variants.cli.options import Devices, DriverVersion, Json, path_option
from vllm_variants.cli.output import err, print_json, say, size
from vllm_variants.cli.rules import one_of, rules
from vllm_variants.errors import UsageError
from vllm_variants.model.capability import Capability

if TYPE_CHECKING:
    from vllm_variants.reports.document import Extra
    from vllm_variants.reports.runs import Run


@dataclass(frozen=True)
class BesideOptions:
    """What is shown beside it."""

    evidence: Annotated[
        list[Path] | None,
        path_option(
            "--evidence",
            metavar="FILE",
            help="Runs of checks to show, of `verify --json`; in a checkout docs/evidence is looked at too."
            " Repeatable.",
        ),
    ] = None
    advisories: Annotated[
        list[Path] | None,
        path_option(
            "--advisories", metavar="FILE", help="Known advisories to show, JSON or TOML. Repeatable."
        ),
    ] = None


@rules(one_of("--output", "--json", hint="say where it goes: -o report.html"))
@with_groups
def report(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="A variant's result, any PATH to audit, or a file that `audit --json` or `build --json`"
            " printed. Two are compared.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, path_option("--output", "-o", metavar="FILE", help="The HTML file to write.")
    ] = None,
    sm: Devices = None,
    driver: DriverVersion = None,
    as_json: Json = False,
    *,
    beside: BesideOptions,
) -> None:
    """Write what is in a result, two results, an audit or a batch of builds as one HTML file.

    It shows where the bytes are and went, which GPU runs what, what waits for the driver's compiler, and what
    was seen on a card. The file fetches nothing, and holds its figures as JSON.
    """
    from vllm_variants.reports import reading
    from vllm_variants.reports.document import report as document

    if len(subjects) > 2:
        raise UsageError(
            f"a report is of one thing or of two, and these are {len(subjects)}", hint="name two"
        )
    if sm and sm[1:]:
        raise UsageError("a report judges for one device", hint="give --sm once; every SM is in it anyway")
    with reading.of_others(map(Path, subjects), beside.evidence or ()):
        extra = _beside(beside)
        found = document([_read(word, sm[0] if sm else None, driver) for word in subjects], extra)
        text = _html(found) if output else ""
    if output:
        _write(output, found, text)
    if as_json:
        print_json(found)


def _beside(options: BesideOptions) -> Extra:
    from vllm_variants.reports import advisories as lists
    from vllm_variants.reports.document import Extra

    given, kept = _runs(options.evidence or ())
    listed = [advisory for path in options.advisories or () for advisory in lists.read(path)]
    return Extra(given, kept, listed, shlex.join(["vllm-variants", *sys.argv[1:]]))


def _read(word: str, sm: Capability | None, driver: str | None) -> Any:
    from vllm_variants.machine import gpus
    from vllm_variants.reports import inputs

    here = gpus.machine()
    with err.status(f"reading {word} …", spinner_style="default") as status:
        return inputs.read(
            word,
            sm,
            lambda name: status.update(f"reading {name}"),
            lambda device: driver or here.driver_for(device),
        )


def _runs(evidence: Sequence[Path]) -> tuple[list[Run], list[Run]]:
    """The runs that a person named, and those that the checkout keeps."""
    from vllm_variants import data
    from vllm_variants.reports import runs

    root = data.checkout()
    folder = root / "docs" / "evidence" if root else None
    return runs.read(evidence), runs.read([folder] if folder and folder.is_dir() else [])


def _html(document: dict[str, Any]) -> str:
    from vllm_variants.reports.page import page

    return page(document)


def _write(output: Path, document: dict[str, Any], text: str) -> None:
    from vllm_variants.system import reporting

    reporting.write(output, text)
    say(f"{output}: {document['sentence']} ({size(len(text.encode()))}, open it in a browser)")
