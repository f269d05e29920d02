"""`vllm-variants lint`: every rule of the sources that a machine can hold."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants.cli import checkout
from vllm_variants.cli.output import out
from vllm_variants.errors import ExitCode


def lint(
    fix: Annotated[bool, typer.Option("--fix", help="Correct what can be corrected, then look.")] = False,
) -> None:
    """Lint the sources: ruff, mypy, shellcheck and, where it is installed, nixfmt."""
    from vllm_variants.maintain import lint as linters

    root = checkout.require("lint")
    failed = 0
    for outcome in linters.run(root, fix=fix):
        reason = f": {outcome.skipped}" if outcome.skipped else ""
        out.print(f"{outcome.status:8} {outcome.name}{reason}")
        if not outcome.passed:
            failed += 1
            out.print(outcome.output)
    if failed:
        raise typer.Exit(ExitCode.FAILED)
