"""`vllm-variants docs`: rewrite what is generated from the matrix."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants import data, generated, matrix
from vllm_variants.cli.output import say
from vllm_variants.errors import ExitCode


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if something is old.")
    ] = False,
) -> None:
    """Rewrite the tables in README.md and docs/ that come from variants.toml."""
    root = data.checkout()
    assert root is not None  # registered in a checkout only
    old = {
        path: text
        for path, text in generated.files(root, matrix.load()).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in old.items():
        say(f"{'old' if check else 'rewritten'}: {path.relative_to(root)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and old:
        raise typer.Exit(ExitCode.FAILED)
    if not old:
        say("everything is as variants.toml says")
