"""`vllm-variants doctor`: what this machine has and lacks, with the hint for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli import checkout
from vllm_variants.cli.options import Json, ReleaseName
from vllm_variants.cli.output import out, print_json
from vllm_variants.model import matrix
from vllm_variants.store import Store

if TYPE_CHECKING:
    from vllm_variants.model.findings import Finding
    from vllm_variants.model.variants import Matrix, Release

_MARK = {"ok": "[green]ok[/green]     ", "note": "[yellow]note[/yellow]   ", "problem": "[red]problem[/red]"}


def doctor(
    as_json: Json = False,
    release: ReleaseName = None,
    nixpkgs: Annotated[
        bool,
        typer.Option(
            "--nixpkgs", help="Instead, evaluate every variant at the pinned nixpkgs (downloads them)."
        ),
    ] = False,
) -> None:
    """Examine this machine: one line a finding, with the command that helps.

    Problems end in the exit code of the first one: 6 for disk, memory and network, 4 for a missing
    Python or uv, 3 for what this machine cannot do.
    """
    from vllm_variants.model.findings import State

    rows = matrix.load()
    findings = []
    for finding in _pinned(rows) if nixpkgs else _examined(rows, rows.release(release)):
        findings.append(finding)
        if not as_json:
            out.print(_MARK[finding.state.value], end=" ", markup=True)
            out.print(f"{finding.about}: {finding.text}")
            if finding.hint:
                out.print(f"        hint: {finding.hint}")
    if as_json:
        print_json({"schema": documents.DOCTOR, "findings": [finding.as_dict() for finding in findings]})
    problems = [finding for finding in findings if finding.state is State.PROBLEM]
    if problems:
        raise typer.Exit(problems[0].code)


def _examined(rows: Matrix, release: Release) -> Iterator[Finding]:
    from vllm_variants.cli import known_advisories
    from vllm_variants.doctor.wheels import examine

    yield from examine(rows, release, Store.default())
    yield known_advisories.finding(release)


def _pinned(rows: Matrix) -> Iterator[Finding]:
    from vllm_variants.nix import command as nix_command
    from vllm_variants.nix import pinned as nixpkgs

    root = checkout.require("doctor --nixpkgs")
    yield from nixpkgs.examine(nix_command.find(str(root)), root, rows)
