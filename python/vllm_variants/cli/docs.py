"""`vllm-variants docs`: rewrite what is computed from the matrix and from recorded runs."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants.cli import checkout
from vllm_variants.cli.output import say
from vllm_variants.errors import ExitCode
from vllm_variants.maintain import docs as generated
from vllm_variants.maintain import flox
from vllm_variants.model import matrix


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if something is old.")
    ] = False,
) -> None:
    """Rewrite what is computed: tables in README.md and docs/, Flox's expressions."""
    root = checkout.require("docs")
    old = {
        path: text
        for path, text in generated.files(root, matrix.load()).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    strays = flox.strays(root, matrix.load())
    for path in strays:
        say(f"{'no variant of the matrix' if check else 'removed'}: {path.relative_to(root)}")
        if not check:
            path.unlink()
    for path, text in old.items():
        say(f"{'old' if check else 'rewritten'}: {path.relative_to(root)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and (old or strays):
        raise typer.Exit(ExitCode.FAILED)
    if not old and not strays:
        say("there is nothing to rewrite")
