"""`vllm-variants doctor`: what this machine has and lacks, with the mend for each."""

from __future__ import annotations

import typer

from vllm_variants import matrix
from vllm_variants.cli.options import ReleaseName
from vllm_variants.cli.output import Json, out, print_json
from vllm_variants.errors import ExitCode
from vllm_variants.store import Store

_MARK = {"ok": "[green]ok[/green]     ", "note": "[yellow]note[/yellow]   ", "problem": "[red]problem[/red]"}


def doctor(as_json: Json = False, release: ReleaseName = None) -> None:
    """Examine this machine: one line a finding, with the command that mends it."""
    from vllm_variants.doctor import State, examine

    rows = matrix.load()
    findings = []
    for finding in examine(rows, rows.release(release), Store.default()):
        findings.append(finding)
        if not as_json:
            out.print(_MARK[finding.state.value], end=" ")
            out.print(f"{finding.about}: {finding.text}", markup=False)
            if finding.mend:
                out.print(f"          mend: {finding.mend}", markup=False)
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    if any(finding.state is State.PROBLEM for finding in findings):
        raise typer.Exit(ExitCode.UNSUPPORTED)
